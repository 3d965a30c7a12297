"""Kernels of a mixture's layer that the GPU waits for the host to start.

Elsewhere the host runs ahead of the GPU. Experts without dropped tokens receive as many tokens as
the router sends them: the host waits for these numbers, and then starts the kernels of each expert
one after another (Megatron-Core's token dispatcher, Transformer Engine's GroupedLinear).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from megatron.bridge.models.layer_blocks import ATTENTION
from megatron.bridge.models.model_shape import Experts
from megatron.bridge.utils.cuda_graph import cuda_graph_module_names, is_full_iteration_cuda_graph
from overlapkit.plan.workload.layout import Layout


class Launches(NamedTuple):
    """Kernels that are started one by one in a layer's forward and in its backward.

    Attributes:
        forward, backward: all of them.
        experts_forward, experts_backward: those among them that belong to the grouped GEMMs.
    """

    forward: float = 0
    backward: float = 0
    experts_forward: float = 0
    experts_backward: float = 0


NO_LAUNCHES = Launches()
EXPERT = Launches(2, 4)
"""For each expert of a rank: the GEMMs of two linear layers; the backward has two for each of the
forward. Activation and quantization are one kernel for all experts."""
BIAS = Launches(2, 6)
"""For each expert of a rank with a bias: product and sum; the backward casts and sums each of their
gradients (`TEGroupedMLP._apply_bias`)."""
LAYER = Launches(90, 120)
"""Of the rest of the layer: norms, attention, router, permutation, dispatch and combine, in
PyTorch's own kernels and Transformer Engine's."""
GRAPHED_LAYER = Launches(70, 95)
"""Of the rest of the layer where its attention or its router is captured in CUDA graphs, each of
which is started by itself, after its inputs were copied. A layer of a hybrid model that has experts
and no attention has half as many, with graphs or without. Chosen with `LAYER`, `EXPERT` and
`LAUNCH_S` on the mixtures of benchmarks/data."""
_OF_LAYER = {"attn", "mlp", "moe", "moe_router", "moe_preprocess"}
"""Modules whose graphs hold a part of a layer with experts."""


def launches_of(
    model: Any, experts: Experts, layout: Layout, blocks: str, *, bias: bool
) -> Launches:
    """The kernels of one layer with experts; none where a graph holds the entire iteration.

    Args:
        model: its configuration, effective.
        experts: of the model.
        layout: ranks.
        blocks: of the layer.
        bias: whether linear layers have one.
    """
    if is_full_iteration_cuda_graph(model):
        return NO_LAUNCHES
    graphed = (getattr(model, "cuda_graph_impl", None) or "none") != "none"
    names = set(cuda_graph_module_names(model)) if graphed else set()
    rest = GRAPHED_LAYER if names & _OF_LAYER else LAYER
    if ATTENTION not in blocks:
        graphed = bool(names & (_OF_LAYER - {"attn", "mlp"}))
        rest = Launches(*(each / 2 for each in (GRAPHED_LAYER if graphed else LAYER)))
    own = experts.count // layout.ep
    return Launches(
        rest.forward + own * (EXPERT.forward + bias * BIAS.forward),
        rest.backward + own * (EXPERT.backward + bias * BIAS.backward),
        own * EXPERT.forward,
        own * EXPERT.backward,
    )
