"""How many parameters a rank holds, by what becomes of them: dense or expert, FP8 or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.model_shape import ModelShape
from megatron.bridge.models.parameter_count import ParameterTensor, TensorGroup, chunk_tensor_groups
from overlapkit.plan.workload.layout import Layout


@dataclass(frozen=True)
class Parameters:
    """Elements on one rank; `fp8` ones are among the others, by group that reduces them."""

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
    """One pipeline stage's: of each chunk, and of its largest layer."""

    chunks: tuple[Parameters, ...]
    largest_layer: Parameters

    @property
    def all(self) -> Parameters:
        return sum(self.chunks, Parameters())


def stage_parameters(model: Any, shape: ModelShape, layout: Layout) -> list[StageParameters]:
    """The parameters of every pipeline stage."""
    alike: dict[Any, tuple[Parameters, Parameters]] = {}
    stages = []
    for stage in range(layout.pp):
        chunks = []
        for chunk in range(layout.vp):
            ends = stage + chunk == 0, (stage, chunk) == (layout.pp - 1, layout.vp - 1)
            layers = layout.chunk_layers[chunk][stage]
            kinds = tuple((shape.moe_layers[layer], shape.fp8_layers[layer]) for layer in layers)
            key = kinds, ends
            if key not in alike:
                alike[key] = _of_chunk(chunk_tensor_groups(shape, model, stage, chunk))
            chunks.append(alike[key])
        largest = max((layer for _, layer in chunks), key=lambda layer: layer.all)
        stages.append(StageParameters(tuple(held for held, _ in chunks), largest))
    return stages


def _of_chunk(groups: Sequence[TensorGroup]) -> tuple[Parameters, Parameters]:
    """Those of a chunk, and of its largest layer."""
    counted: dict[int, Parameters] = {}
    held = largest = Parameters()
    for prefix, tensors in groups:
        # Equal layers share their tensors.
        if id(tensors) not in counted:
            counted[id(tensors)] = _count(tensors)
        each = counted[id(tensors)]
        held += each
        if prefix.startswith("decoder.layers.") and each.all > largest.all:
            largest = each
    return held, largest


def _count(tensors: Iterable[ParameterTensor]) -> Parameters:
    totals = [0, 0, 0, 0]
    for tensor in tensors:
        totals[tensor.expert] += tensor.numel
        if tensor.fp8:
            totals[2 + tensor.expert] += tensor.numel
    return Parameters(*totals)
