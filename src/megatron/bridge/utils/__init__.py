"""Small facts about a configuration or a machine; nothing here imports the rest of the bridge."""
