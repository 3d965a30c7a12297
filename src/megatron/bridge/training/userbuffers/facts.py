"""Transformer Engine's rules for userbuffers settings, and the facts that they are based on.

`checks` applies them. The facts are those of Transformer Engine 2.20.2: ``initialize_ub`` of
``transformer_engine.pytorch.module.base`` (names, defaults, refusals), the modules that use the
communicators (which collective each GEMM runs), ``comm_gemm_overlap.h`` (which class can run which
method), and the kernel launches in ``libtransformer_engine.so`` (clusters, copy engines).
tests/functional_tests/test_te_initialize_ub.py compares those of ``initialize_ub`` with the
installed version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron.bridge.training.decisions import Dimension, rule

KNOB = "model.tp_comm_overlap_cfg"
"""The knob of a userbuffers configuration; a GEMM's settings are under it."""

RING = "ring_exchange"
METHODS = (RING, "pipeline", "bulk", "external")
"""The methods that Transformer Engine knows."""


@dataclass(frozen=True)
class Gemm:
    """One overlapped GEMM, as Transformer Engine's modules use it.

    Attributes:
        collective: "all-gather" or "reduce-scatter": what runs beside it by default.
        method: the default method.
        methods: the methods that it can run.
        stand_in: the method that any other method except ring_exchange runs as; None where the
            GEMM then fails.
    """

    collective: str
    method: str
    methods: tuple[str, ...]
    stand_in: str | None = None


_GATHERED_INPUT = Gemm("all-gather", RING, (RING,))
_SCATTERED_OUTPUT = Gemm("reduce-scatter", "pipeline", ("pipeline", RING), stand_in="pipeline")
_INPUT_GRADIENT = Gemm("all-gather", "bulk", ("bulk", "pipeline", RING), stand_in="pipeline")
_WEIGHT_GRADIENT = Gemm("reduce-scatter", "bulk", ("bulk",), stand_in="bulk")
_EXTERNAL_GATHER = Gemm("all-gather", "external", ("external",))

GEMMS: Mapping[str, Gemm] = {
    "qkv_fprop": _GATHERED_INPUT,
    "fc1_fprop": _GATHERED_INPUT,
    "proj_dgrad": _GATHERED_INPUT,
    "fc2_dgrad": _GATHERED_INPUT,
    "proj_fprop": _SCATTERED_OUTPUT,
    "fc2_fprop": _SCATTERED_OUTPUT,
    "qkv_dgrad": _INPUT_GRADIENT,
    "fc1_dgrad": _INPUT_GRADIENT,
    "qkv_wgrad": _WEIGHT_GRADIENT,
    "fc1_wgrad": _WEIGHT_GRADIENT,
    "proj_wgrad": _EXTERNAL_GATHER,
    "fc2_wgrad": _EXTERNAL_GATHER,
}
"""Every GEMM that Transformer Engine overlaps, by its name there."""

PAIRS = {"qkv_fprop": "proj_fprop", "fc1_fprop": "fc2_fprop"}
"""The all-gather GEMM that opens a tensor-parallel block, and the reduce-scatter that closes it."""

WGRADS = {"qkv_dgrad": "qkv_wgrad", "fc1_dgrad": "fc1_wgrad"}
"""The dgrads that can do the reduce-scatter, and the wgrad that otherwise does it in bulk."""

FP8_SCATTERABLE = ("proj_fprop", "fc2_fprop")
"""Where fp8_buf is read with every method; elsewhere it is read only for a pipeline dgrad."""

INTEGERS = ("num_sm", "cga_size", "num_splits", "comm_priority", "gemm_priority")
BOOLEANS = (
    "is_reduce_scatter",
    "set_sm_margin",
    "aggregate",
    "atomic_gemm",
    "use_ce",
    "fp8_buf",
    "pipeline_rs_overlap_first_gemm",
)
KEYS = ("method", *INTEGERS, *BOOLEANS)
"""Every setting that a GEMM can have."""

MAX_CGA_SIZE = 4
"""Thread blocks per cluster of a communication kernel, at most."""

FLAGGED_SMS = 32
"""NVTE_MAX_SMS of userbuffers.h: the size of the table of flags between GPUs."""

GEMM_NAME = rule(
    "ub.gemm-name",
    Dimension.TP,
    claim="Transformer Engine ignores settings for a GEMM name that it does not know.",
    remedy="use one of its names: " + ", ".join(GEMMS),
)
KEY_NAME = rule(
    "ub.key-name",
    Dimension.TP,
    claim="Transformer Engine refuses a setting that it does not know (TypeError).",
    remedy="use one of: " + ", ".join(KEYS),
)
KEY_TYPE = rule(
    "ub.key-type",
    Dimension.TP,
    claim="num_sm, cga_size, num_splits and the priorities are 32-bit integers, method is a name, "
    "and every other setting is true or false.",
)
METHOD_NAME = rule(
    "ub.method-name",
    Dimension.TP,
    claim="A method that Transformer Engine does not know raises a KeyError for a dgrad. For any "
    "other GEMM it silently creates an SM-driven communicator, which an all-gather GEMM cannot "
    "run.",
    remedy="use one of: " + ", ".join(METHODS),
)
PIPELINE_GATHER = rule(
    "ub.pipeline-all-gather",
    Dimension.TP,
    claim="Transformer Engine refuses pipeline for a GEMM with an all-gather: pipeline is for "
    "reduce-scatters only.",
)
METHOD_GEMM = rule(
    "ub.method-gemm",
    Dimension.TP,
    claim="A GEMM fails with a method that its communicator cannot run: bulk or external on an "
    "all-gathered input, ring_exchange on qkv_wgrad or fc1_wgrad, and anything but external on "
    "proj_wgrad or fc2_wgrad.",
)
METHOD_STAND_IN = rule(
    "ub.method-stand-in",
    Dimension.TP,
    claim="A method that is not meant for a GEMM can run as another method: bulk on proj_fprop or "
    "fc2_fprop runs as pipeline, pipeline on qkv_wgrad or fc1_wgrad runs as bulk.",
)
METHOD_DEFAULTS = rule(
    "ub.method-defaults",
    Dimension.TP,
    claim="Omitted settings take the defaults of the GEMM's default method, not of the chosen "
    "method: ring_exchange on proj_fprop without num_sm reserves 16 SMs.",
    remedy="set num_sm, cga_size and set_sm_margin (a RingExchangeOverlapCfg sets 1, 1, false)",
)
SPLIT_DGRAD_WGRAD = rule(
    "ub.split-dgrad-wgrad",
    Dimension.TP,
    claim="qkv_dgrad or fc1_dgrad with a method other than bulk does the reduce-scatter itself. "
    "Transformer Engine then refuses settings for its wgrad.",
)
SPLIT_DGRAD_SWITCH = rule(
    "ub.split-dgrad-switch",
    Dimension.TP,
    claim="qkv_dgrad or fc1_dgrad with a method other than bulk runs as a reduce-scatter only with "
    "model.tp_comm_overlap_rs_dgrad on (default off). Otherwise the layer runs it as bulk, and "
    "ring_exchange fails.",
    remedy="set model.tp_comm_overlap_rs_dgrad=true",
)
SPLIT_DGRAD_MODES = rule(
    "ub.split-dgrad-modes",
    Dimension.TP,
    claim="initialize_ub fails (ValueError: list.remove) for a dgrad other than bulk where it sets "
    "up FP8 and BF16 communicators together.",
    remedy="use bulk for qkv_dgrad and fc1_dgrad, or turn first_last_layers_bf16 off",
)
ATOMIC_FP8 = rule(
    "ub.atomic-fp8",
    Dimension.TP,
    claim="atomic_gemm needs FP8 GEMMs; otherwise Transformer Engine refuses it.",
    remedy="set atomic_gemm=false, or train every layer in FP8",
)
ATOMIC_BULK = rule(
    "ub.atomic-bulk",
    Dimension.TP,
    claim="Transformer Engine switches atomic_gemm off for bulk and external overlaps.",
)
ATOMIC_PAIR = rule(
    "ub.atomic-pair",
    Dimension.TP,
    claim="atomic_gemm with ring_exchange changes the order of the chunks: both GEMMs of a pair "
    "(qkv_fprop and proj_fprop, fc1_fprop and fc2_fprop) must use it, or neither.",
)
POSITIVE = rule(
    "ub.positive",
    Dimension.TP,
    claim="num_sm, cga_size and num_splits are at least 1: they are a kernel's grid and divisors.",
)
CGA_SIZE = rule(
    "ub.cga-size",
    Dimension.TP,
    claim=f"cga_size is at most {MAX_CGA_SIZE}, and at most num_sm where kernels do the copying.",
)
CGA_DIVIDES = rule(
    "ub.cga-divides",
    Dimension.TP,
    claim="Communication kernels run without clusters where cga_size does not divide num_sm.",
)
FLAG_TABLE = rule(
    "ub.num-sm-flags",
    Dimension.TP,
    claim=f"Transformer Engine's table of flags is for {FLAGGED_SMS} SMs (NVTE_MAX_SMS), and "
    "num_sm is not checked against it.",
    remedy=f"set num_sm to {FLAGGED_SMS} or less",
)
COLLECTIVE = rule(
    "ub.collective",
    Dimension.TP,
    claim="is_reduce_scatter only repeats the GEMM's collective. With another value the layers "
    "still run their own collective, on a buffer with the layout of the other one.",
    remedy="omit is_reduce_scatter",
)
KEY_UNUSED = rule(
    "ub.key-unused",
    Dimension.TP,
    claim="num_splits and pipeline_rs_overlap_first_gemm have no effect with ring_exchange; "
    "aggregate and use_ce have no effect with the other methods.",
)
FP8_BUF_LIST = rule(
    "ub.fp8-buf-list",
    Dimension.TP,
    claim="fp8_buf: [false], as Megatron-Bridge 0.3 writes it, is read as true. It matters only in "
    "an FP8 run, where proj_fprop, fc2_fprop or a pipeline dgrad then reduce-scatters FP8 values.",
    remedy="write fp8_buf: false, or true to reduce-scatter FP8 values",
)
FP8_BUF_UNUSED = rule(
    "ub.fp8-buf-unused",
    Dimension.TP,
    claim="fp8_buf has no effect without FP8, on qkv_wgrad and fc1_wgrad, and on a ring_exchange "
    "dgrad. In an FP8 run every all-gather is in FP8, whatever its value.",
)
