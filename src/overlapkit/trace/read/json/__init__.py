"""From bytes to the events of a JSON trace, however damaged it is."""
