"""What Megatron-Core does with activations that the backward pass computes again."""

from __future__ import annotations

import math

from megatron.bridge.models.layer_blocks import UncountableModel, moe_layers_of
from megatron.bridge.models.pipeline_layout import layers_by_chunk
from megatron.bridge.training.decisions import Dimension, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.remedies import without
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import Refusal
from megatron.bridge.training.versions import Range

_MODULES = "model.recompute_modules"
_NEEDS_TE = ("layernorm", "moe_act")


def _modules(c: Context) -> list[str]:
    """The modules that are computed again; none without selective recomputation."""
    if c.of_model("recompute_granularity") != "selective":
        return []
    return list(c.of_model("recompute_modules") or ())


def _has_dense_layer(c: Context) -> bool:
    """Whether some layer has an MLP instead of experts; where that is not known, it has not."""
    if not c.of_model("num_moe_experts"):
        return True
    try:
        layers = moe_layers_of(c.of_model("moe_layer_freq", 1), c.of_model("num_layers") or 0)
    except UncountableModel:
        return False
    return not all(layers)


def _units(c: Context) -> tuple[int, list[int]] | None:
    """Layers of a recomputed unit and of each model chunk; None where there is none, or unknown."""
    size = c.of_model("recompute_num_layers")
    uniform = c.of_model("recompute_method") == "uniform"
    if c.of_model("recompute_granularity") != "full" or not uniform or not isinstance(size, int):
        return None
    try:
        counts = [len(layers) for stage in layers_by_chunk(c.model) for layers in stage]
    except UncountableModel:
        return None
    return (size, counts) if size > 0 else None


def _uneven(c: Context) -> str:
    found = _units(c)
    broken = next((n for n in found[1] if n % found[0]), None) if found else None
    if found is None or broken is None:
        return ""
    return (
        f"a model chunk has {broken} layers, which are not whole units of {found[0]}: the last "
        "unit asks for a layer after the last, an IndexError in the first forward pass"
    )


def _dividing(c: Context) -> tuple[Edit, ...]:
    """The largest unit that fits into every chunk and is no larger than the one requested."""
    found = _units(c)
    if found is None:
        return ()
    size, counts = found
    common = math.gcd(*counts)
    largest = next(n for n in range(size, 0, -1) if common % n == 0)
    return (Edit("model.recompute_num_layers", largest),)


def _kept(c: Context, unwanted: str) -> tuple[Edit, ...]:
    """The recomputation without one module; switched off where it has no other."""
    edit = without(_MODULES, _modules(c), unwanted)
    if edit.value:
        return (edit,)
    return (Edit("model.recompute_granularity", None), Edit(_MODULES, None))


def _named(c: Context) -> str:
    """The first module that needs Transformer Engine; empty without one."""
    return next((name for name in _modules(c) if name in _NEEDS_TE), "")


RECOMPUTE_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "core.recompute-mlp-bias",
            Dimension.ANY,
            claim="With mlp in recompute_modules and add_bias_linear, the first backward pass of a "
            "dense layer calls itself without end: the MLP returns its bias beside its output, "
            "autograd takes the parameter for an output of the checkpoint, and the backward "
            "through it starts the same checkpoint again (observed with megatron-core 0.16.1 "
            "without Transformer Engine; by their sources, its layers return the same parameter, "
            "and megatron-core to 0.19.0 does the same).",
            remedy="remove mlp from model.recompute_modules, or set model.add_bias_linear=false",
            source="Megatron-LM megatron/core/tensor_parallel/random.py and "
            "megatron/core/transformer/transformer_layer.py; Transformer Engine's linear.py",
            rests_on=("model.add_bias_linear",),
        ),
        _MODULES,
        lambda c: (
            "mlp is computed again and add_bias_linear is on: the first backward pass calls itself "
            "without end"
            if "mlp" in _modules(c) and c.of_model("add_bias_linear") and _has_dense_layer(c)
            else ""
        ),
        lambda c: _kept(c, "mlp"),
        "set model.add_bias_linear=false",
    ),
    Refusal(
        rule(
            "core.recompute-needs-te",
            Dimension.ANY,
            claim="layernorm and moe_act in recompute_modules need Transformer Engine, with and "
            "without FP8: the first forward pass without it raises a NameError (layernorm "
            "observed with megatron-core 0.16.1; moe_act by its source).",
            remedy="remove layernorm and moe_act from model.recompute_modules, or install "
            "Transformer Engine",
            source="Megatron-LM megatron/core/tensor_parallel/random.py",
        ),
        _MODULES,
        lambda c: (
            f"{_named(c)} is computed again without Transformer Engine: a NameError in the first "
            "forward pass"
            if _named(c) and not c.software.have_te()
            else ""
        ),
        lambda c: _kept(c, _named(c)),
        "install Transformer Engine",
    ),
    Refusal(
        rule(
            "core.recompute-units-divide-layers",
            Dimension.ANY,
            claim="With recompute_method=uniform every model chunk must have a multiple of "
            "recompute_num_layers layers: the last unit would go past the last layer, an "
            "IndexError in the first forward pass (observed with megatron-core 0.16.1; "
            "0.17.1 ends the last unit at the last layer).",
            remedy="set model.recompute_num_layers to a divisor of the layers of every chunk",
            versions=(Range("core", until="0.17.0"),),
            source="Megatron-LM megatron/core/transformer/transformer_block.py",
            is_bug=True,
        ),
        "model.recompute_num_layers",
        _uneven,
        _dividing,
    ),
    Refusal(
        rule(
            "core.distribute-activations-excludes",
            Dimension.TP,
            claim="Megatron-Core refuses distribute_saved_activations with sequence_parallel where "
            "activations are recomputed: the saved ones are divided already.",
            remedy="set model.distribute_saved_activations=false",
            edits=(Edit("model.distribute_saved_activations", False),),
            source="Megatron-LM megatron/core/transformer/transformer_config.py",
        ),
        "model.distribute_saved_activations",
        lambda c: (
            "sequence_parallel is on: a ValueError when the model is built"
            if c.of_model("recompute_granularity")
            and c.of_model("distribute_saved_activations")
            and c.of_model("sequence_parallel")
            else ""
        ),
    ),
)
"""In the order in which they are reported."""
