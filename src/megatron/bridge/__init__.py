"""Drop-in for the communication-overlap modules of NVIDIA's Megatron-Bridge."""
