"""What runs in every rank; only these modules of the lab import torch."""
