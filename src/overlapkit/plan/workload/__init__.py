"""What a step asks of each GPU, whatever the machine."""
