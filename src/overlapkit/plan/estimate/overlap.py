"""Which communication a run hides: the switches in effect, by dimension."""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.config.run import Run

TP, DP_GRADIENTS, DP_PARAMETERS = "TP", "DP gradients", "DP parameters"
PP, CP, EP = "PP", "CP", "EP"
DIMENSIONS = (TP, DP_GRADIENTS, DP_PARAMETERS, PP, CP, EP)
"""Every dimension whose communication can be overlapped, in the order of reports."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What is hidden, where there is compute to hide it under.

    Attributes:
        tp: all-gather and reduce-scatter under the GEMM beside them (tp_comm_overlap).
        dp_gradients: reduction under the backward (overlap_grad_reduce).
        dp_parameters: gathering under the forward (overlap_param_gather).
        pp: boundary activations under the compute of other microbatches (overlap_p2p_comm).
        cp: ring steps under attention; Transformer Engine's ring always hides them.
        ep: dispatch and combine under another microbatch (overlap_moe_expert_parallel_comm).
    """

    tp: bool
    dp_gradients: bool
    dp_parameters: bool
    pp: bool
    cp: bool
    ep: bool


NO_OVERLAP = Overlap(tp=False, dp_gradients=False, dp_parameters=False, pp=False, cp=True, ep=False)
"""Every switch off. The ring of context parallelism has no switch."""


def overlap_of(run: Run) -> Overlap:
    """The overlap in effect in a run whose configurations are effective (`update_runtime`)."""
    gradients = bool(getattr(run.ddp, "overlap_grad_reduce", False))
    return Overlap(
        tp=bool(getattr(run.model, "tp_comm_overlap", False)),
        dp_gradients=gradients,
        dp_parameters=gradients and bool(getattr(run.ddp, "overlap_param_gather", False)),
        pp=bool(getattr(run.model, "overlap_p2p_comm", False)),
        cp=True,
        ep=bool(getattr(run.model, "overlap_moe_expert_parallel_comm", False)),
    )
