"""Configurations and machines for the rules of what a machine and a launcher must have."""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Gpu, Launcher
from megatron.bridge.training.software import AssumedSoftware
from support.rule_runs import TP4

H100 = Gpu("h100", 9.0, 8)
A100 = Gpu("a100", 8.0, 8)
GB200 = Gpu("gb200", 10.0, 72)
TORCHRUN = Launcher("torchrun", 8, has_mpi=False)
OVERLAP = {"tp_comm_overlap": True}
EMPTY = JobEnvironment({}, True, "job.env")
GRAPHS = {"cuda_graph_impl": "transformer_engine"}
EXPANDABLE = JobEnvironment({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True)

BROKEN: dict[str, dict[str, Any]] = {
    "tp.one-nvlink-domain": {
        "model": {"tensor_model_parallel_size": 16, "sequence_parallel": True},
        "comm": OVERLAP,
        "gpu": H100,
    },
    "tp.multicast-needs": {
        "model": TP4,
        "comm": OVERLAP,
        "gpu": A100,
        "environment": EMPTY,
    },
    "tp.bootstrap-needs-mpi": {
        "model": TP4,
        "comm": {**OVERLAP, "tp_comm_bootstrap_backend": "mpi"},
        "launcher": TORCHRUN,
    },
    "tp.old-te-bootstraps-with-mpi": {
        "model": TP4,
        "comm": OVERLAP,
        "launcher": TORCHRUN,
        "software": AssumedSoftware(te="1.5.0"),
    },
    "tp.userbuffers-fixed-length": {
        "model": {**TP4, "variable_seq_lengths": True},
        "comm": OVERLAP,
    },
    "core.graphs-expandable": {"model": GRAPHS, "gpu": H100, "environment": EXPANDABLE},
}
