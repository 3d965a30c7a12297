"""Which userbuffers preset is chosen for a layer, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron.bridge.training.tp_overlap_presets import PRESETS, parse_preset_name
from overlapkit.plan.advise.presets import LayerShape, choose_preset, fewest_rows

LLAMA_70B = LayerShape("h100", "hopper", "bf16", 8192, tp=4, cp=1, micro_batch=1, sequence=8192)
GENERATION = {"h100": "hopper", "b200": "blackwell"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_found_for_the_layer_of_its_name(name: str) -> None:
    key = parse_preset_name(name)
    layer = LayerShape(
        key.gpu,
        GENERATION[key.gpu],
        {"bf16": "bf16", "fp8": "fp8 current"}[key.precision],
        key.hidden_size,
        key.tensor_parallel_size,
        key.context_parallel_size,
        key.micro_batch_size,
        key.seq_length,
        lora=key.lora,
    )
    chosen = choose_preset(layer)
    assert (chosen.name, chosen.match, chosen.differs) == (name, "exact", ())


@pytest.mark.parametrize("precision", ["fp8 current", "fp8 delayed", "mxfp8"])
def test_fp8_layers_get_the_fp8_preset(precision: str) -> None:
    chosen = choose_preset(replace(LLAMA_70B, precision=precision))
    assert chosen.name == "userbuffers_fp8_h100_h8192_tp4_mbs1_seqlen8192"


@pytest.mark.parametrize(
    ("gpu", "generation", "tuned_on"),
    [("h200", "hopper", "h100"), ("gb200", "blackwell", "b200"), ("b300", "blackwell", "b200")],
)
def test_a_gpu_takes_its_generations_presets(gpu: str, generation: str, tuned_on: str) -> None:
    chosen = choose_preset(replace(LLAMA_70B, gpu=gpu, generation=generation))
    assert chosen.match == "nearest" and f"_{tuned_on}_" in (chosen.name or "")
    assert f"{tuned_on}, not {gpu}" in chosen.differs


# What Megatron-Bridge 0.3.1's recipes ship for layers that no preset is named after.
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ({"hidden_size": 8192, "tp": 4, "cp": 2, "sequence": 8192}, "h8192_tp4_mbs1_seqlen8192"),
        ({"hidden_size": 8192, "tp": 8, "cp": 8, "sequence": 65536}, "h8192_tp4_mbs1_seqlen8192"),
        ({"hidden_size": 12288, "micro_batch": 2, "sequence": 2048}, "h12288_tp4_mbs1_seqlen2048"),
        (
            {"hidden_size": 16384, "tp": 8, "cp": 4, "sequence": 131072},
            "h16384_tp8_cp2_mbs1_seqlen8192",
        ),
        ({"hidden_size": 16384, "tp": 8, "sequence": 2048}, None),
        ({"hidden_size": 4096, "tp": 2, "transformer": False}, None),
        ({"hidden_size": 8192, "tp": 8, "transformer": False}, None),
    ],
)
def test_what_recipes_ship(layer: dict[str, int], name: str | None) -> None:
    chosen = choose_preset(replace(LLAMA_70B, **layer))
    assert chosen.name == (name and f"userbuffers_bf16_h100_{name}")
    assert chosen.match == ("nearest" if name else "none") and chosen.reason


def test_what_differs_is_named() -> None:
    chosen = choose_preset(replace(LLAMA_70B, tp=8, cp=2, micro_batch=2))
    assert chosen.differs == ("TP 4, not 8", "CP 1, not 2", "micro-batch 1, not 2")
    assert "1024 rows" in chosen.reason and "2048" in chosen.reason


def test_shorter_pieces_than_any_was_tuned_for_are_left_to_transformer_engine() -> None:
    rows = fewest_rows()
    assert rows == min(
        k.micro_batch_size * k.seq_length // k.tensor_parallel_size // k.context_parallel_size
        for k in map(parse_preset_name, PRESETS)
    )
    assert choose_preset(replace(LLAMA_70B, sequence=rows * 4)).name is not None
    assert choose_preset(replace(LLAMA_70B, sequence=rows * 4 - 8)).name is None


@pytest.mark.parametrize(
    "layer",
    [
        {"gpu": "a100", "generation": "ampere"},
        {"hidden_size": 5120},
        {"lora": True},
        {"hidden_size": 18432, "tp": 8},
    ],
)
def test_no_preset_is_stretched_to_another_gpu_width_or_lora(layer: dict[str, object]) -> None:
    chosen = choose_preset(replace(LLAMA_70B, **layer))
    assert (chosen.name, chosen.match) == (None, "none")


def test_bf16_settings_serve_fp8_but_not_the_other_way_round() -> None:
    wide = replace(LLAMA_70B, gpu="b200", generation="blackwell", hidden_size=6144, tp=2)
    chosen = choose_preset(replace(wide, precision="mxfp8", sequence=4096))
    assert chosen.name == "userbuffers_bf16_b200_h6144_tp2_mbs1_seqlen4096"
    assert chosen.differs == ("bf16, not fp8",)
    lora = replace(LLAMA_70B, lora=True, tp=2, sequence=4096)
    assert choose_preset(lora).name is None
    assert choose_preset(replace(lora, precision="fp8 current")).match == "exact"
