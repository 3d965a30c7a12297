"""Which layouts there are, and which of those that fit is the fastest."""
