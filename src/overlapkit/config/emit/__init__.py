"""Settings written out as Bridge Python, YAML, Hydra overrides or Megatron-LM flags."""
