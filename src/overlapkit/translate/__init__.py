"""The same run in another form: Bridge Python, YAML, Hydra overrides or a Megatron-LM script."""

from overlapkit.callable_package import make_callable

make_callable(__name__)
