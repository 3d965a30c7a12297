"""What the machine and the launcher must have for tensor-parallel overlap through userbuffers.

Transformer Engine sets userbuffers up when the job starts (`initialize_ub`). What it needs there,
no configuration contains: NVLink between all ranks of a TP group, multicast, a bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, either, in_words
from megatron.bridge.training.remedies import TP_OVERLAP, Edits, off
from megatron.bridge.training.rules.context import Context, Gpu, Launcher

LARGEST_NODE = 8
"""GPUs of the largest node. A larger NVLink domain connects GPUs of several nodes."""

MULTICAST_CAPABILITY = 9.0
"""Compute capability from which GPUs have NVLink multicast: Hopper's."""

SKIP_MULTICAST = "UB_SKIPMC"
"""The variable that lets userbuffers do without multicast."""

ONE_DOMAIN = rule(
    "tp.one-nvlink-domain",
    Dimension.TP,
    claim="All ranks of a tensor-parallel group must be in one NVLink domain: of a node, and of "
    "the processes that the job has there, or of several nodes where multi-node NVLink connects "
    "them. Otherwise userbuffers stop the job when they are set up, and without them every layer "
    "waits for the network.",
    remedy="make TP no larger than the NVLink domain, or set tp_comm_overlap=false",
)
MULTICAST = rule(
    "tp.multicast-needs",
    Dimension.TP,
    claim=f"GPUs below compute capability {MULTICAST_CAPABILITY} have no NVLink multicast: "
    f"userbuffers stop the job when they are set up, unless {SKIP_MULTICAST}=1 is in its "
    "environment.",
    remedy=f"set {SKIP_MULTICAST}=1 in the job's environment",
)
BOOTSTRAP = rule(
    "tp.bootstrap-needs-mpi",
    Dimension.TP,
    claim="Userbuffers that are set up over MPI (tp_comm_bootstrap_backend mpi) need a launcher "
    "that starts an MPI world, such as mpirun or srun --mpi=pmix: under torchrun the job stops.",
    remedy="set tp_comm_bootstrap_backend=nccl, or start the job with srun --mpi=pmix",
)
OLD_BOOTSTRAP = rule(
    "tp.old-te-bootstraps-with-mpi",
    Dimension.TP,
    claim="Transformer Engine before 1.9 sets userbuffers up over MPI, whatever "
    "tp_comm_bootstrap_backend is: under torchrun, which starts no MPI world, the job stops.",
    remedy="set tp_comm_overlap=false, or use Transformer Engine 1.9 or newer, or start the job "
    "with srun --mpi=pmix",
    source="Transformer Engine's initialize_ub, which takes bootstrap_backend since 1.9",
)
FIXED_LENGTH = rule(
    "tp.userbuffers-fixed-length",
    Dimension.TP,
    claim="A userbuffer has one fixed shape: seq_length x micro_batch_size tokens. The first batch "
    "of another length stops the job.",
    remedy="set tp_comm_overlap=false, or pad every batch to seq_length",
)


_PAD = (Edit("dataset.dataset_kwargs.pad_to_max_length", True),)


def machine_consequences(c: Context) -> Iterator[Decision]:
    """What the machine and the launcher make of a run's tensor parallelism."""
    if (c.model.tensor_model_parallel_size or 1) < 2:
        return
    yield from _one_domain(c)
    if c.of_model("tp_comm_overlap"):
        yield from _multicast(c)
        yield from _bootstrap(c)
        yield from _fixed_length(c)


def nvlink_reach(gpu: Gpu | None, launcher: Launcher | None) -> tuple[int, str] | None:
    """How many GPUs of a job NVLink connects, and in words what limits it; None: not known."""
    domain = gpu.nvlink_domain if gpu is not None else None
    local = launcher.processes_per_node if launcher is not None else None
    if gpu is not None and domain is not None and domain > LARGEST_NODE:
        # Multi-node NVLink: a group may extend over nodes.
        return domain, f"the NVLink domain of {gpu.name} has {domain} GPUs"
    limits = [(local, f"the job has {local} processes on a node")] if local else []
    if gpu is not None and domain is not None:
        limits.append((domain, f"the NVLink domain of {gpu.name} has {domain} GPUs"))
    return min(limits) if limits else None


def _one_domain(c: Context) -> Iterator[Decision]:
    tp = c.model.tensor_model_parallel_size
    reach = nvlink_reach(c.gpu, c.launcher)
    if reach is None or (tp <= reach[0] and reach[0] % tp == 0):
        return
    size, why = reach
    overlap = bool(c.of_model("tp_comm_overlap"))
    # Of a GPU that nobody named, only what would follow can be said.
    certain = overlap and c.gpu is not None and c.gpu.given
    follows = (
        "userbuffers need one NVLink domain, and Transformer Engine stops the job in initialize_ub"
        if overlap
        else "every layer waits for the network between nodes"
    )
    fits = max(n for n in range(1, size + 1) if tp % n == 0 and size % n == 0)
    named = c.gpu is None or c.gpu.given
    smaller: Edits = (Edit("model.tensor_model_parallel_size", fits),)
    if fits == 1 and c.of_model("sequence_parallel"):
        smaller += (Edit("model.sequence_parallel", False),)
    without_overlap = off(TP_OVERLAP)(c) if overlap else ()
    edits = smaller if fits > 1 or not overlap else without_overlap
    remedy = either(edits, in_words(without_overlap) if edits != without_overlap else "")
    yield ONE_DOMAIN.decide(
        "model.tp_comm_overlap" if overlap else "model.tensor_model_parallel_size",
        requested=True if overlap else None,
        effective=overlap or tp,
        reason=f"TP={tp} extends beyond one NVLink domain ({why}): {follows}",
        outcome=Outcome.ERROR if certain else Outcome.NOTE,
        remedy=remedy if named else f"name the GPU with --gpu; on this one, {remedy}",
        # Of a GPU that is only assumed, nothing is to be changed.
        edits=edits if named else (),
    )


def _multicast(c: Context) -> Iterator[Decision]:
    gpu = c.gpu
    if gpu is None or not gpu.given or gpu.capability >= MULTICAST_CAPABILITY:
        return
    value = c.environment.get(SKIP_MULTICAST)
    if value is not None and value.strip() not in ("", "0"):
        return
    known = c.environment.knows(SKIP_MULTICAST)
    unset = (
        f"{c.environment.origin(SKIP_MULTICAST)} sets it to {value}"
        if value is not None
        else c.environment.says_unset(SKIP_MULTICAST)
        if known
        else f"whether the job's environment has {SKIP_MULTICAST}=1 is not known"
    )
    yield MULTICAST.decide(
        f"env.{SKIP_MULTICAST}",
        requested="1",
        effective=value,
        reason=f"{gpu.name} has compute capability {gpu.capability}, and no multicast: without "
        f"{SKIP_MULTICAST}=1 Transformer Engine stops the job in initialize_ub; {unset}",
        outcome=Outcome.ERROR if known else Outcome.NOTE,
        remedy=f"set {SKIP_MULTICAST}=1 {c.environment.place_to_set(SKIP_MULTICAST)}",
        edits=(Edit(f"env.{SKIP_MULTICAST}", "1"),),
    )


def _bootstrap(c: Context) -> Iterator[Decision]:
    backend = c.of_model("tp_comm_bootstrap_backend")
    launcher = c.launcher
    old = c.software.have_te() and not c.software.is_te_min_version("1.9.0")
    if (not old and backend != "mpi") or (launcher is not None and launcher.has_mpi):
        return
    certain = launcher is not None and launcher.has_mpi is False
    if old:
        decided_by = OLD_BOOTSTRAP
        what = "Transformer Engine before 1.9 sets userbuffers up over MPI, whatever the backend is"
    else:
        decided_by, what = BOOTSTRAP, "tp_comm_bootstrap_backend is mpi"
    how = (
        f"{launcher.name} starts no MPI world, and the job stops when userbuffers are set up"
        if certain and launcher is not None
        else "it needs a launcher that starts an MPI world, and how the job is started is not known"
    )
    otherwise = "start the job with srun --mpi=pmix"
    if old:
        edits = off(TP_OVERLAP)(c)
        otherwise = f"use Transformer Engine 1.9 or newer, or {otherwise}"
    else:
        edits = (Edit(c.key("model.tp_comm_bootstrap_backend"), "nccl"),)
    yield decided_by.decide(
        "model.tp_comm_bootstrap_backend",
        requested=backend,
        effective="mpi",
        reason=f"{what}: {how}",
        outcome=Outcome.ERROR if certain else Outcome.NOTE,
        remedy=either(edits, otherwise),
        edits=edits,
    )


def _fixed_length(c: Context) -> Iterator[Decision]:
    edits = off(TP_OVERLAP)(c)
    if c.of_model("variable_seq_lengths"):
        yield FIXED_LENGTH.decide(
            "model.tp_comm_overlap",
            requested=True,
            effective=True,
            reason="variable_seq_lengths is on: a userbuffer has one fixed shape, and the first "
            "batch of another length stops the job",
            outcome=Outcome.ERROR,
            remedy=either(
                edits, "set model.variable_seq_lengths=false and pad every batch to seq_length"
            ),
            edits=edits,
        )
        return
    packed = getattr(c.dataset, "packed_sequence_specs", None)
    if packed and not _padded(c.dataset):
        yield FIXED_LENGTH.decide(
            "model.tp_comm_overlap",
            requested=True,
            effective=True,
            reason="dataset.packed_sequence_specs packs sequences, and nothing here pads each pack "
            "to one length (dataset_kwargs has no pad_to_max_length): a userbuffer has one fixed "
            "shape, and the first pack of another length stops the job",
            outcome=Outcome.NOTE,
            remedy=either(_PAD, in_words(edits)),
            edits=_PAD,
        )


def _padded(dataset: object) -> bool:
    extra = getattr(dataset, "dataset_kwargs", None)
    return bool(isinstance(extra, dict) and extra.get("pad_to_max_length"))
