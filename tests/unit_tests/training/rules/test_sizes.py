"""Sizes that must divide each other, and the values that a finding says would do."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import Edit
from support.rule_runs import OFF, decisions_of

PP, VPP = "model.pipeline_model_parallel_size", "model.virtual_pipeline_model_parallel_size"
FIRST = "model.num_layers_in_first_pipeline_stage"
EMBEDDING = "model.account_for_embedding_in_pipeline_split"
LOSS = "model.account_for_loss_in_pipeline_split"


def sized(layers: int, pp: int, vpp: int | None = None, **more: Any) -> list[Decision]:
    """What is found in a pipeline of 16 GPUs."""
    model = {
        "num_layers": layers,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp,
        **more.pop("model", {}),
    }
    told = decisions_of(model=model, comm=OFF, **more)
    return [d for d in told if d.is_finding]


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "model", "expected"),
    [
        (32, 4, 3, {}, {Edit(VPP, 4)}),
        (80, 8, 4, {}, {Edit(VPP, 5)}),
        (92, 4, 2, {}, {Edit(VPP, 23)}),
        (4, 4, 2, {}, {Edit(VPP, None)}),
        (94, 4, 3, {}, {Edit(EMBEDDING, True), Edit(LOSS, True)}),
        (95, 4, 3, {EMBEDDING: False}, {Edit(EMBEDDING, True)}),
        (32, 4, None, {LOSS: True}, {Edit(LOSS, False)}),
        (30, 4, 3, {EMBEDDING: True, LOSS: True}, {Edit(VPP, 4)}),
        (34, 4, None, {EMBEDDING: True}, {Edit(LOSS, True)}),
        (97, 4, None, {}, {Edit(FIRST, 25)}),
        (97, 4, None, {FIRST: 24}, {Edit(FIRST, 25)}),
        (98, 4, 3, {FIRST: 26}, {Edit(VPP, 2)}),
        (5, 2, 2, {FIRST: 2}, {Edit(VPP, None)}),
        (26, 8, 2, {}, {Edit(PP, 1), Edit(VPP, None)}),
    ],
)
def test_layers_that_do_not_divide(
    layers: int, pp: int, vpp: int | None, model: dict[str, Any], expected: set[Edit]
) -> None:
    model = {key.removeprefix("model."): value for key, value in model.items()}
    (found,) = sized(layers, pp, vpp, model=model)
    assert found.rule in ("core.stages-divide-layers", "core.chunks-divide-layers")
    assert set(found.edits) == expected
    edited = {e.key.removeprefix("model."): e.value for e in found.edits}
    sizes = {"virtual_pipeline_model_parallel_size": vpp, "pipeline_model_parallel_size": pp}
    assert not sized(layers, pp, vpp, model={**sizes, **model, **edited})


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "model"),
    [
        (32, 4, 4, {}),
        (94, 4, 8, {"account_for_embedding_in_pipeline_split": True, LOSS[6:]: True}),
        (22, 4, 2, {FIRST[6:]: 4}),
        (61, 2, None, {"pipeline_model_parallel_layout": "Et*31|t*30L"}),
        (10, 4, None, {"is_hybrid_model": True}),
        (10, 4, None, {"hybrid_layer_pattern": "M*M*M*M*M*"}),
    ],
)
def test_layers_that_divide_or_are_placed_otherwise(
    layers: int, pp: int, vpp: int | None, model: dict[str, Any]
) -> None:
    assert not sized(layers, pp, vpp, model=model)


def batches(micro: int, batch: int, *, pp: int = 1, vpp: int | None = None, **more: Any) -> Any:
    model = {"microbatch_group_size_per_vp_stage": more.pop("group", None)}
    train = {"micro_batch_size": micro, "global_batch_size": batch, **more}
    return sized(16, pp, vpp, model=model, train=train)


def test_a_batch_that_does_not_divide_names_the_nearest_that_do() -> None:
    (found,) = batches(2, 84)
    assert found.edits == (Edit("train.global_batch_size", 96),)
    assert found.reason.endswith("96 or 64 would do")
    assert not batches(2, 96)
    (found,) = batches(2, 20)
    assert found.edits == (Edit("train.global_batch_size", 32),)
    (found,) = batches(3, 64)
    assert found.remedy == "set train.global_batch_size=48, or train.micro_batch_size=2"


def test_a_batch_that_may_be_made_smaller_is_no_error() -> None:
    assert not batches(2, 84, decrease_batch_size_if_needed=True)


def test_a_ramp_up_has_multiples_too() -> None:
    (found,) = batches(1, 160, rampup_batch_size=[16, 8, 1000])
    assert found.edits == (Edit("train.rampup_batch_size", [16, 16, 1000]),)
    assert not batches(1, 160, rampup_batch_size=[16, 16, 1000])


@pytest.mark.parametrize(
    ("count", "group", "wanted"),
    [(8, None, None), (6, None, 8), (2, None, 4), (9, 5, None), (8, 5, 9), (4, 5, 5)],
)
def test_microbatches_fill_an_interleaved_pipeline(
    count: int, group: int | None, wanted: int | None
) -> None:
    found = batches(1, 4 * count, pp=4, vpp=2, group=group)
    edits = [d.edits for d in found]
    assert edits == ([] if wanted is None else [(Edit("train.global_batch_size", 4 * wanted),)])


def test_a_group_is_no_smaller_than_the_stages() -> None:
    (found,) = batches(1, 32, pp=4, vpp=2, group=2)
    assert found.edits == (Edit("model.microbatch_group_size_per_vp_stage", 4),)


def test_stages_that_would_do_are_named_where_the_batch_fits_none() -> None:
    told = decisions_of(
        model={
            "num_layers": 30,
            "pipeline_model_parallel_size": 4,
            "virtual_pipeline_model_parallel_size": 3,
        },
        comm=OFF,
        train={"micro_batch_size": 2, "global_batch_size": 101},
        world_size=32,
    )
    (found,) = [d for d in told if d.rule == "core.stages-divide-layers"]
    assert "2 or 1 stages would do" in found.reason
    assert found.edits == (Edit("model.pipeline_model_parallel_size", 2),)


# One bucket for each tensor: those of the norms have 264 elements, padded to 384 for 16 ranks.
TENSORS = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "bucket_size": 1}
NORMS = {"model": {"hidden_size": 264}, "ddp": TENSORS}
SAVED = {"save": "checkpoints"}


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({**NORMS, "train": SAVED}, True),
        ({**NORMS, "train": {**SAVED, "dist_ckpt_optim_fully_reshardable": True}}, False),
        ({**NORMS, "train": {**SAVED, "save_optim": False}}, False),
        ({**NORMS, "train": {**SAVED, "ckpt_format": "torch"}}, False),
        (NORMS, False),
        # Without divisions the chunk is one bucket, and with 256 elements there is no padding.
        ({**NORMS, "ddp": {"use_distributed_optimizer": True}, "train": SAVED}, False),
        ({"ddp": TENSORS, "train": SAVED}, False),
    ],
)
def test_a_checkpoint_needs_a_part_of_a_tensor_on_every_rank(
    sections: dict[str, Any], found: bool
) -> None:
    decisions = [
        d for d in decisions_of(**sections) if d.rule == "core.checkpoint-shard-of-padding"
    ]
    assert bool(decisions) is found
    for decision in decisions:
        assert "264 elements is padded to 384 for 16 ranks, and 5 of them keep" in decision.reason
        assert decision.edits == ()
        assert "fully_reshardable=true" in (decision.remedy or "")
