"""The virtual pipeline sizes that divide the layers of every stage."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.bridge.models.pipeline_layout import virtual_sizes
from support.rule_runs import section


@pytest.mark.parametrize(
    ("layers", "pp", "model", "sizes"),
    [
        (32, 4, {}, [2, 4, 8]),
        (92, 4, {}, [23]),
        (94, 4, {}, []),
        (94, 4, {f"account_for_{n}_in_pipeline_split": True for n in ("embedding", "loss")}, None),
        (22, 4, {"num_layers_in_first_pipeline_stage": 4}, [2]),
        (32, 1, {}, []),
        (32, 2, {"pipeline_model_parallel_layout": "Et*16|t*16L"}, []),
    ],
)
def test_virtual_sizes(
    layers: int, pp: int, model: dict[str, Any], sizes: list[int] | None
) -> None:
    run = section("model", num_layers=layers, pipeline_model_parallel_size=pp, **model)
    assert virtual_sizes(run) == ([2, 3, 4, 6, 8, 12, 24] if sizes is None else sizes)
