"""What stops a job because of variables of its environment."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.remedies import variable_without
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.fsdp import is_version_1
from megatron.bridge.training.versions import Range

_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_REGISTER = "NCCL_GRAPH_REGISTER"
_NOT_REGISTERED = (Edit(f"env.{_REGISTER}", "0"),)

_UB_CLAIM = f"ddp.nccl_ub is refused where {_ALLOCATOR} has expandable_segments:True"
_UB_REMEDY = f"remove expandable_segments from {_ALLOCATOR}, or set ddp.nccl_ub=false"

UB_EXPANDABLE = rule(
    "core.nccl-ub-expandable",
    Dimension.DP,
    claim=f"{_UB_CLAIM}: NCCL cannot register segments that grow.",
    remedy=_UB_REMEDY,
    versions=(Range("core", until="0.18.2"),),
    source="Megatron-LM e35d4e50c5",
)
UB_EXPANDABLE_TORCH = rule(
    "core.nccl-ub-expandable-torch",
    Dimension.DP,
    claim=f"{_UB_CLAIM} and torch is older than 2.11.",
    remedy=f"{_UB_REMEDY}, or use torch 2.11 or newer",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM e35d4e50c5",
)
_GRAPHS = (
    f"where {_ALLOCATOR} has expandable_segments:True, unless NCCL_GRAPH_REGISTER is 0: NCCL would "
    "register segments that grow."
)
GRAPHS_EXPANDABLE = rule(
    "core.graphs-expandable",
    Dimension.ANY,
    claim="CUDA graphs of Transformer Engine are refused below compute capability 10.0 " + _GRAPHS,
    remedy=f"set NCCL_GRAPH_REGISTER=0, or remove expandable_segments from {_ALLOCATOR}",
    edits=_NOT_REGISTERED,
    source="Megatron-LM's cuda_graphs.py, issue 5474",
)
LM_GRAPHS_EXPANDABLE = rule(
    "lm.graphs-expandable",
    Dimension.ANY,
    claim="--cuda-graph-impl transformer_engine is refused on every GPU " + _GRAPHS,
    remedy=f"set NCCL_GRAPH_REGISTER=0, or remove expandable_segments from {_ALLOCATOR}",
    edits=_NOT_REGISTERED,
    source="Megatron-LM's arguments.py, pull request 2572",
)
FSDP_ONE_QUEUE = rule(
    "bridge.fsdp-one-queue",
    Dimension.LAUNCH,
    claim=f"Megatron-FSDP version 1 is refused with {_CONNECTIONS}=1, on every GPU.",
    remedy=f"unset {_CONNECTIONS}, or set it above 1",
    edits=(Edit(f"env.{_CONNECTIONS}", REMOVED),),
    versions=(Range("bridge", since="0.5.1"),),
    source="Megatron-Bridge a8f6ce3f7",
)


def environment_consequences(c: Context) -> Iterator[Decision]:
    """The combinations of settings and variables that stop a job."""
    yield from _user_buffers(c)
    if c.gpu is not None and c.gpu.given and c.gpu.capability < 10.0:
        yield from graphs_with_expandable_segments(c, GRAPHS_EXPANDABLE)
    if is_version_1(c) and (c.environment.get(_CONNECTIONS) or "").strip() == "1":
        yield FSDP_ONE_QUEUE.error(
            f"env.{_CONNECTIONS}",
            "1",
            f"{c.environment.origin(_CONNECTIONS)} sets it to 1, and use_megatron_fsdp is on",
        )


def graphs_with_expandable_segments(c: Context, by: Rule) -> Iterator[Decision]:
    """CUDA graphs whose memory NCCL cannot register; by Megatron-Core's check or Megatron-LM's."""
    grows = _growing_segments(c)
    registered = c.environment.get(_REGISTER)
    if (
        c.of_model("cuda_graph_impl") != "transformer_engine"
        or not grows
        or (registered is not None and registered.strip() == "0")
    ):
        return
    found = f"{grows}, and "
    known = c.environment.knows(_REGISTER)
    if registered is not None:
        found += f"{_REGISTER} is {registered}"
    elif known:
        found += c.environment.says_unset(_REGISTER)
    else:
        found += f"whether {_REGISTER}=0 is set is not known"
    yield by.decide(
        "model.cuda_graph_impl",
        requested="transformer_engine",
        effective="transformer_engine",
        reason=f"{found}: an assertion stops the job before training",
        outcome=Outcome.ERROR if known else Outcome.NOTE,
        remedy=by.remedy,
        edits=by.edits,
    )


def _user_buffers(c: Context) -> Iterator[Decision]:
    grows = _growing_segments(c)
    if not c.of_ddp("nccl_ub") or not grows:
        return
    by: Rule = UB_EXPANDABLE
    if not by.holds(c.stack):
        if c.software.is_torch_min_version("2.11.0"):
            return
        by = UB_EXPANDABLE_TORCH
    edits = (variable_without(c.environment, _ALLOCATOR, "expandable_segments"),)
    otherwise = "set ddp.nccl_ub=false"
    if by is UB_EXPANDABLE_TORCH:
        otherwise += ", or use torch 2.11 or newer"
    yield by.error("ddp.nccl_ub", True, grows, either(edits, otherwise), edits)


def _growing_segments(c: Context) -> str:
    """Where the allocator's segments are made to grow, as the start of a reason; else empty."""
    settings = (c.environment.get(_ALLOCATOR) or "").replace(" ", "")
    if "expandable_segments:True" not in settings:
        return ""
    return f"{c.environment.origin(_ALLOCATOR)} sets {_ALLOCATOR}={settings}"
