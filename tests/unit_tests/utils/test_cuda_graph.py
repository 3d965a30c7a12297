"""CUDA-graph parts by name, in the spelling of every Megatron-Core."""

from __future__ import annotations

from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.bridge.errors import OverlapConfigError
from megatron.bridge.utils import cuda_graph


class CudaGraphScope(Enum):
    """As until core 0.17, where attn is 2."""

    full_iteration = 1
    attn = 2
    mlp = 3
    moe_router = 5


class CudaGraphModule(IntEnum):
    """As from core 0.18, where attn is 1."""

    attn = 1
    mlp = 2
    moe_router = 4


@pytest.fixture
def old_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron-Core until 0.17."""
    monkeypatch.setattr(cuda_graph, "_enum", {"CudaGraphScope": CudaGraphScope}.get)


@pytest.fixture
def new_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron-Core from 0.18, which keeps the deprecated enum."""
    both = {"CudaGraphScope": CudaGraphScope, "CudaGraphModule": CudaGraphModule}
    monkeypatch.setattr(cuda_graph, "_enum", both.get)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        ("", []),
        ("full", []),
        ([], []),
        ("attn,mlp", ["attn", "mlp"]),
        (" attn , CudaGraphScope.mlp", ["attn", "mlp"]),
        (["attn", "attn"], ["attn"]),
        (["moe_router,attn"], ["moe_router", "attn"]),
        (CudaGraphScope.attn, ["attn"]),
        ([CudaGraphModule.attn, CudaGraphScope.mlp, "moe_router"], ["attn", "mlp", "moe_router"]),
        ((CudaGraphModule.mlp,), ["mlp"]),
        ("full_iteration", ["full_iteration"]),
    ],
)
def test_parts_by_name(value: Any, names: list[str]) -> None:
    assert cuda_graph.part_names(value) == names


def test_both_fields_count() -> None:
    config = SimpleNamespace(
        cuda_graph_modules=[CudaGraphModule.attn], cuda_graph_scope="mlp,full_iteration,attn"
    )
    assert cuda_graph.cuda_graph_module_names(config) == ["attn", "mlp"]
    for module in ("attn", CudaGraphScope.mlp, CudaGraphModule.mlp):
        assert cuda_graph.has_cuda_graph_module(config, module)
    assert not cuda_graph.has_cuda_graph_module(config, CudaGraphModule.moe_router)
    assert not cuda_graph.has_cuda_graph_module(config, None)
    assert cuda_graph.cuda_graph_module_names(SimpleNamespace()) == []


@pytest.mark.parametrize(
    ("fields", "full", "local"),
    [
        ({"cuda_graph_impl": "full_iteration"}, True, False),
        ({"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]}, True, False),
        ({"cuda_graph_impl": "local", "cuda_graph_modules": "full_iteration"}, True, False),
        ({"cuda_graph_impl": "local", "cuda_graph_scope": "attn"}, False, True),
        ({"cuda_graph_impl": "local", "cuda_graph_scope": "full"}, False, True),
        (
            {"cuda_graph_impl": "transformer_engine", "cuda_graph_scope": "full_iteration"},
            False,
            False,
        ),
        ({"cuda_graph_impl": "none", "cuda_graph_scope": "full_iteration"}, False, False),
        ({}, False, False),
    ],
)
def test_full_iteration(fields: dict[str, Any], full: bool, local: bool) -> None:
    config = SimpleNamespace(**fields)
    assert cuda_graph.is_full_iteration_cuda_graph(config) is full
    assert cuda_graph.uses_local_cuda_graph_manager(config) is local


def test_written_as_an_old_core_expects(old_core: None) -> None:
    config = SimpleNamespace(cuda_graph_impl="none", cuda_graph_scope=None)
    cuda_graph.set_cuda_graph_modules(config, "attn,mlp")
    assert config.cuda_graph_scope == [CudaGraphScope.attn, CudaGraphScope.mlp]
    cuda_graph.set_full_iteration_cuda_graph(config)
    assert config.cuda_graph_impl == "local"
    assert config.cuda_graph_scope == [CudaGraphScope.full_iteration]
    assert not hasattr(config, "cuda_graph_modules")


def test_written_as_a_new_core_expects(new_core: None) -> None:
    config = SimpleNamespace(
        cuda_graph_impl="none", cuda_graph_modules="full", cuda_graph_scope=["mlp"]
    )
    cuda_graph.set_cuda_graph_modules(config, [CudaGraphScope.attn])
    assert (config.cuda_graph_modules, config.cuda_graph_scope) == ([CudaGraphModule.attn], None)
    cuda_graph.set_full_iteration_cuda_graph(config)
    assert (config.cuda_graph_impl, config.cuda_graph_modules) == ("full_iteration", [])


def test_an_unknown_part_is_refused(new_core: None) -> None:
    config = SimpleNamespace(cuda_graph_modules=[])
    with pytest.raises(OverlapConfigError, match=r"'attention' is no part.*attn, mlp, moe_router"):
        cuda_graph.set_cuda_graph_modules(config, "attention")
    assert config.cuda_graph_modules == []


def test_without_graphs_the_parts_are_cleared() -> None:
    config = SimpleNamespace(
        cuda_graph_impl="none", cuda_graph_scope=["attn"], cuda_graph_modules=["mlp"]
    )
    cuda_graph.validate_cuda_graph_configuration(config)
    assert (config.cuda_graph_scope, config.cuda_graph_modules) == ([], [])
    plain = SimpleNamespace()
    cuda_graph.validate_cuda_graph_configuration(plain)
    assert vars(plain) == {}


def test_local_graphs_of_single_layers_are_refused() -> None:
    for scope, shown in (("attn,mlp", "attn, mlp"), ("full", "the entire layer")):
        config = SimpleNamespace(cuda_graph_impl="local", cuda_graph_scope=scope)
        with pytest.raises(ValueError, match=rf'student\.cuda_graph_impl="local" with {shown}'):
            cuda_graph.validate_cuda_graph_configuration(config, config_name="student")
    for fields in (
        {"cuda_graph_impl": "local", "cuda_graph_scope": "full_iteration"},
        {"cuda_graph_impl": "local", "cuda_graph_scope": "full_iteration_inference"},
        {"cuda_graph_impl": "transformer_engine", "cuda_graph_scope": "attn"},
        {"cuda_graph_impl": "full_iteration", "cuda_graph_scope": None},
    ):
        config = SimpleNamespace(**fields)
        cuda_graph.validate_cuda_graph_configuration(config)
        assert vars(config) == fields
