"""What each GPU does in a step, independent of the machine."""
