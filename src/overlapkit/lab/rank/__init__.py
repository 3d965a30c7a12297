"""What runs in every rank; nothing else in the lab imports torch."""
