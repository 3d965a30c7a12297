"""How many parameters a rank has: dense or expert, in FP8 or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.models.model_shape import ModelShape
from megatron.bridge.models.parameter_count import ParameterTensor, TensorGroup, tensor_groups
from overlapkit.plan.workload.layout import Layout

COUNTED = "counted tensor by tensor"
"""The source of a number of parameters."""


@dataclass(frozen=True)
class Parameters:
    """Elements on one rank.

    Attributes:
        dense, expert: by the group of ranks that reduces them.
        dense_fp8, expert_fp8: how many of them are kept in FP8 or FP4.
    """

    dense: int = 0
    expert: int = 0
    dense_fp8: int = 0
    expert_fp8: int = 0

    @property
    def all(self) -> int:
        return self.dense + self.expert

    @property
    def fp8(self) -> int:
        return self.dense_fp8 + self.expert_fp8

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(
            self.dense + other.dense,
            self.expert + other.expert,
            self.dense_fp8 + other.dense_fp8,
            self.expert_fp8 + other.expert_fp8,
        )


@dataclass(frozen=True)
class StageParameters:
    """Parameters of one pipeline stage: of each chunk, and of its largest layer."""

    chunks: tuple[Parameters, ...]
    largest_layer: Parameters

    @property
    def all(self) -> Parameters:
        return sum(self.chunks, Parameters())


def stage_parameters(shape: ModelShape, layout: Layout) -> list[StageParameters]:
    """The parameters of every pipeline stage."""
    known: dict[Any, tuple[Parameters, Parameters]] = {}
    stages = []
    for stage in range(layout.pp):
        chunks = []
        for chunk in range(layout.vp):
            part = layout.parts[chunk][stage]
            kinds = tuple((shape.blocks[layer], shape.fp8_layers[layer]) for layer in part.layers)
            key = kinds, replace(part, layers=range(0))
            if key not in known:
                known[key] = _of_chunk(tensor_groups(shape, part))
            chunks.append(known[key])
        largest = max((layer for _, layer in chunks), key=lambda layer: layer.all)
        stages.append(StageParameters(tuple(params for params, _ in chunks), largest))
    return stages


def _of_chunk(groups: Sequence[TensorGroup]) -> tuple[Parameters, Parameters]:
    """Parameters of a chunk, and of its largest layer."""
    counted: dict[int, Parameters] = {}
    params = largest = Parameters()
    for prefix, tensors in groups:
        # Equal layers share their tensors.
        if id(tensors) not in counted:
            counted[id(tensors)] = _count(tensors)
        each = counted[id(tensors)]
        params += each
        if prefix.startswith(("decoder.layers.", "mtp.")) and each.all > largest.all:
            largest = each
    return params, largest


def _count(tensors: Iterable[ParameterTensor]) -> Parameters:
    totals = [0, 0, 0, 0]
    for tensor in tensors:
        totals[tensor.expert] += tensor.numel
        if tensor.fp8:
            totals[2 + tensor.expert] += tensor.numel
    return Parameters(*totals)
