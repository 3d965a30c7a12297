"""Tensor-parallel userbuffers settings: one slot per overlapped GEMM of a transformer layer.

Transformer Engine overlaps the tensor-parallel all-gathers and reduce-scatters with the GEMMs next
to them through *userbuffers*: memory that every GPU of the tensor-parallel group reads and writes.
The classes here set how each GEMM is overlapped. `as_te_dict` turns them into the argument of
``initialize_ub(ub_cfgs=...)``, and `check_userbuffers` says what Transformer Engine would do with
it, before a job starts.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.near_names import did_you_mean
from megatron.bridge.training.userbuffers.checks import check_gemms
from megatron.bridge.training.userbuffers.facts import KNOB
from megatron.bridge.training.userbuffers.remedies import (
    SETTINGS,
    TE_NUM_SPLITS,
    renamed,
    tried,
)


@dataclass
class TPOverlapCfg:
    """How one GEMM is overlapped; the base class of the three methods."""


@dataclass
class PipelineOverlapCfg(TPOverlapCfg):
    """The GEMM in splits; each split's reduce-scatter runs under the next split's GEMM.

    For reduce-scatters only: proj_fprop, fc2_fprop, and a dgrad that is not bulk.
    """

    num_sm: int
    """SMs of the communication kernels."""
    cga_size: int
    """Thread blocks per cluster of a communication kernel, at most 4; divides num_sm."""
    num_splits: int
    """Pieces that the GEMM is split into, at least 1."""
    set_sm_margin: bool
    """Whether the GEMM leaves num_sm SMs to the communication."""
    fp8_buf: bool = False
    """Whether an FP8 run reduce-scatters FP8 values; no effect in a BF16 run."""
    atomic_gemm: bool = False
    """Whether one GEMM kernel signals its finished pieces, instead of one kernel per piece; FP8."""
    method: str = "pipeline"
    """Transformer Engine's name of the method."""


@dataclass
class RingExchangeOverlapCfg(TPOverlapCfg):
    """The collective as point-to-point steps around the ring, each under one chunk's GEMM.

    For all-gathers and reduce-scatters. By default the copy engines move the data, so num_sm and
    cga_size configure no kernel; num_sm is still the margin of set_sm_margin.
    """

    aggregate: bool = False
    """Whether two chunks are sent and multiplied at a time."""
    method: str = "ring_exchange"
    """Transformer Engine's name of the method."""
    num_sm: int = 1
    """SMs for the copies where the copy engines are off (use_ce=False)."""
    cga_size: int = 1
    """Thread blocks per cluster of these copy kernels."""
    set_sm_margin: bool = False
    """Whether the GEMM leaves num_sm SMs free."""
    fp8_buf: bool = False
    """Whether an FP8 run reduce-scatters FP8 values (its all-gathers are always FP8)."""
    atomic_gemm: bool = False
    """As in `PipelineOverlapCfg`; must be the same for both GEMMs of a pair (qkv/proj, fc1/fc2)."""


@dataclass
class BulkOverlapCfg(TPOverlapCfg):
    """The entire collective beside a GEMM that does not depend on it."""

    num_sm: int
    """SMs of the communication kernel."""
    cga_size: int
    """Thread blocks per cluster of the communication kernel, at most 4; divides num_sm."""
    set_sm_margin: bool
    """Whether the GEMM leaves num_sm SMs to the communication."""
    method: str = "bulk"
    """Transformer Engine's name of the method."""


@dataclass
class TransformerLayerTPOverlapCfg:
    """One slot per overlapped GEMM of a transformer layer; None leaves it to Transformer Engine.

    dgrad is the GEMM for a layer's input gradient, wgrad the GEMM for its weight gradient.
    """

    qkv_dgrad: TPOverlapCfg | None
    qkv_wgrad: TPOverlapCfg | None
    fc1_dgrad: TPOverlapCfg | None
    fc1_wgrad: TPOverlapCfg | None
    qkv_fprop: TPOverlapCfg | None
    proj_dgrad: TPOverlapCfg | None
    fc1_fprop: TPOverlapCfg | None
    fc2_dgrad: TPOverlapCfg | None
    proj_fprop: TPOverlapCfg | None
    fc2_fprop: TPOverlapCfg | None


_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        TPOverlapCfg,
        PipelineOverlapCfg,
        RingExchangeOverlapCfg,
        BulkOverlapCfg,
        TransformerLayerTPOverlapCfg,
    )
}
_HYDRA_KEY = r"_[a-z]+_"

_FILE = rule(
    "ub.file",
    Dimension.TP,
    claim="A tp_comm_overlap_cfg that is a path is a YAML file, which is read when the run starts; "
    "its content is not checked here.",
)
_SHAPE = rule(
    "ub.shape",
    Dimension.TP,
    claim="A userbuffers configuration maps GEMM names to mappings of settings.",
    remedy="write one mapping per GEMM, such as proj_fprop: {method: pipeline, num_sm: 16}",
)
_TARGET = rule(
    "ub.target",
    Dimension.TP,
    claim="Where `_target_` is one of the userbuffers classes, the other keys must be fields of "
    "that class, and its fields without a default must be present.",
)


def as_te_dict(cfg: object) -> dict[str, dict[str, Any]]:
    """`cfg` as the plain nested dict that ``initialize_ub(ub_cfgs=...)`` takes.

    None entries are omitted, since Transformer Engine takes every key that is present as set. In a
    mapping read from a YAML, Hydra's own keys (``_target_`` ...) are omitted too, and a known
    ``_target_`` fills in its class's defaults. The result shares nothing with `cfg`.

    Args:
        cfg: any dataclass instance, usually a `TransformerLayerTPOverlapCfg`, or a mapping.

    Raises:
        TypeError: `cfg` is neither.
    """
    if not _is_node(cfg):
        raise TypeError(
            f"tp_comm_overlap_cfg must be a dataclass instance or a mapping of GEMM names, "
            f"not {cfg!r}; for instance a TransformerLayerTPOverlapCfg."
        )
    plain: dict[str, dict[str, Any]] = _plain(cfg)
    return plain


def check_userbuffers(
    cfg: object,
    *,
    fp8: bool | None = None,
    also_bf16: bool = False,
    rs_dgrad: bool | None = None,
) -> list[Decision]:
    """What Transformer Engine would refuse in `cfg`, and what it would silently do differently.

    An `Outcome.ERROR` stops the run in ``initialize_ub``, or at the first GEMM that uses the
    setting. A setting with an `Outcome.NOTE` is accepted but does not do what it says. Settings
    that do what they say yield nothing, so an empty list means a valid configuration.

    Args:
        cfg: a dataclass instance, or a mapping as read from a YAML, with or without ``_target_``;
            None (Transformer Engine's defaults) is valid.
        fp8: whether the run uses FP8 GEMMs; None where that is not known.
        also_bf16: whether an FP8 run keeps some layers in BF16 (first_last_layers_bf16), which
            gives Transformer Engine two quantization modes.
        rs_dgrad: whether model.tp_comm_overlap_rs_dgrad is on; None where that is not known.
    """

    def check(settings: object, switch: bool | None) -> list[Decision]:
        return _check(settings, fp8=fp8, also_bf16=also_bf16, rs_dgrad=switch)

    decisions = check(cfg, rs_dgrad)
    plain = as_te_dict(cfg) if dataclasses.is_dataclass(cfg) else cfg
    return tried(decisions, plain, check, rs_dgrad)


def _check(
    cfg: object, *, fp8: bool | None, also_bf16: bool, rs_dgrad: bool | None
) -> list[Decision]:
    if cfg is None:
        return []
    if isinstance(cfg, str):
        reason = f"the userbuffers configuration is in the file {cfg!r}, which is not read here"
        return [
            _FILE.decide(KNOB, requested=cfg, effective=cfg, reason=reason, outcome=Outcome.NOTE)
        ]
    if not _is_node(cfg):
        return [_misshapen(KNOB, cfg)]
    decisions = list(_check_target(KNOB, cfg))
    gemms: dict[str, Mapping[str, Any]] = {}
    for name, value in _items(cfg).items():
        knob = f"{KNOB}.{name}"
        if value is None:
            continue
        if not _is_node(value):
            decisions.append(_misshapen(knob, value))
            continue
        decisions += _check_target(knob, value)
        gemms[name] = _plain(value)
    refused = {decision.knob for decision in decisions}
    return decisions + [
        decision
        for decision in check_gemms(gemms, fp8=fp8, also_bf16=also_bf16, rs_dgrad=rs_dgrad)
        if decision.knob not in refused
    ]


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _items(node: Any) -> dict[str, Any]:
    """The settings of a dataclass instance or a mapping, including its class's defaults."""
    if not isinstance(node, Mapping):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    cls = _target_class(node)
    defaults = {
        field.name: field.default
        for field in (dataclasses.fields(cls) if cls else ())
        if field.default is not dataclasses.MISSING
    }
    given = {str(key): node[key] for key in node if not re.fullmatch(_HYDRA_KEY, str(key))}
    return defaults | given


def _plain(value: Any) -> Any:
    if not _is_node(value):
        return copy.deepcopy(value)
    return {key: _plain(item) for key, item in _items(value).items() if item is not None}


def _target_class(node: Any) -> type | None:
    """The userbuffers class in a mapping's ``_target_``; the name is only compared."""
    if not isinstance(node, Mapping):
        return None
    return _CLASSES.get(str(node.get("_target_", "")).rpartition(".")[2])


def _check_target(knob: str, node: Any) -> Iterator[Decision]:
    cls = _target_class(node)
    if cls is None:
        return
    fields = [field.name for field in dataclasses.fields(cls)]
    given = _items(node)
    for key in given:
        if key not in fields:
            edits = renamed(key, fields, given, f"{_user_key(knob)}.{key}")
            yield _TARGET.decide(
                f"{knob}.{key}",
                requested=given[key],
                effective=None,
                reason=f"{cls.__name__} has no field {key!r}{did_you_mean(key, fields)}",
                outcome=Outcome.ERROR,
                remedy=either(edits, "omit `_target_`"),
                edits=edits,
            )
    for key in fields:
        if key not in given:
            yield _TARGET.decide(
                f"{knob}.{key}",
                requested=None,
                effective=None,
                reason=f"{cls.__name__} needs a value for {key!r}",
                outcome=Outcome.ERROR,
                edits=(Edit(f"{_user_key(knob)}.{key}", _TE_DEFAULTS.get(key)),),
            )


_TE_DEFAULTS = {
    "num_sm": 16,
    "cga_size": 2,
    "num_splits": TE_NUM_SPLITS,
    "set_sm_margin": False,
}
"""Transformer Engine's own values of the fields that a class needs; a GEMM without any is None."""


def _user_key(knob: str) -> str:
    return SETTINGS + knob.removeprefix(KNOB)


def _misshapen(knob: str, value: object) -> Decision:
    edits = (Edit(_user_key(knob), None),)
    return _SHAPE.decide(
        knob,
        requested=value,
        effective=None,
        reason=f"{value!r} is a {type(value).__name__}, not a mapping",
        outcome=Outcome.ERROR,
        remedy=either(edits, _SHAPE.remedy),
        edits=edits,
    )
