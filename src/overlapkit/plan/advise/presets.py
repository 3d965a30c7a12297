"""Which userbuffers preset suits a tensor-parallel layer: exact, nearest, or none.

The name of a preset says what it was tuned for. Few things matter: the GPU's SMs and NVLink, which
the SM counts are for; the width of the model and the precision, which decide how many bytes a GEMM
has to hide; and the rows of tokens on each tensor-parallel rank, which decide how long the pieces
of a ring or a pipeline are. The choice reproduces what Megatron-Bridge's recipes use (0.3.1,
Apache-2.0; `benchmarks/plan_vs_experts.py` measures the agreement): a preset of the same GPU, width
and precision also at other TP, CP and sequence lengths, and Transformer Engine's own settings for
other widths and for very short pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from megatron.bridge.training.tp_overlap_presets import PRESETS, PresetKey, parse_preset_name

_FAMILY = {"hopper": "h100", "blackwell": "b200"}
"""Presets are tuned on one GPU of a generation; the others have similar SMs and NVLink."""

NO_USERBUFFERS = {
    "fp32": "the presets and Transformer Engine's userbuffers are for 16-bit and FP8 layers",
    "nvfp4": "Transformer Engine's userbuffers take BF16, FP8 and MXFP8 tensors, not NVFP4 "
    "(transformer_engine 2.9, pytorch/module/base.py)",
    "fp8 blockwise": "Transformer Engine's userbuffers take FP8 tensors with one scale, or MXFP8, "
    "not block-scaled ones (transformer_engine 2.9, pytorch/module/base.py)",
}
"""Precisions (keys of `precision.PRECISIONS`) that userbuffers do not support, and why."""


@dataclass(frozen=True)
class LayerShape:
    """What decides whether userbuffers help.

    Attributes:
        gpu: short name of the GPU.
        generation: "ampere", "hopper" or "blackwell".
        precision: of the linear layers, a key of `precision.PRECISIONS`.
        hidden_size: width of the model.
        tp, cp: tensor- and context-parallel sizes.
        micro_batch: sequences per microbatch.
        sequence: tokens per sequence, before context parallelism divides it.
        lora: whether the weights are frozen, so that there is no wgrad GEMM.
        transformer: whether every layer is attention and MLP; False for hybrid models.
    """

    gpu: str
    generation: str
    precision: str
    hidden_size: int
    tp: int
    cp: int
    micro_batch: int
    sequence: int
    lora: bool = False
    transformer: bool = True

    @property
    def rows(self) -> int:
        """Rows of tokens that one rank has between layers: the length of a ring's pieces."""
        return self.micro_batch * self.sequence // (self.cp * self.tp)


@dataclass(frozen=True)
class PresetChoice:
    """The userbuffers settings for a layer.

    Attributes:
        name: the preset; None leaves the settings to Transformer Engine.
        match: "exact", "nearest" or "none".
        differs: what the preset was tuned for and the layer is not, such as "CP 1, not 2".
        reason: why this one, or why none, in one sentence.
    """

    name: str | None
    match: str
    differs: tuple[str, ...]
    reason: str


def fewest_rows() -> int:
    """The shortest piece, in rows of tokens, that any preset was tuned for."""
    return min(map(_rows, map(parse_preset_name, PRESETS)))


def choose_preset(layer: LayerShape) -> PresetChoice:
    """The preset for a layer with TP > 1 in a precision that userbuffers support."""
    family = _FAMILY.get(layer.generation)
    bits = "fp8" if "fp8" in layer.precision else "bf16"
    keys = [parse_preset_name(name) for name in PRESETS]
    if family is None:
        return _none(f"no preset was tuned on {layer.gpu} or another {layer.generation} GPU")
    if not layer.transformer:
        return _none(
            "the presets were tuned for layers of attention and MLP, and this model has other "
            "layers too"
        )
    same = [
        key
        for key in keys
        if (key.gpu, key.hidden_size, key.lora) == (family, layer.hidden_size, layer.lora)
        # FP8 settings can send FP8 values; BF16 ones send what the layer has.
        and (key.precision == bits or (bits == "fp8" and key.precision == "bf16"))
    ]
    if not same:
        widths = sorted({k.hidden_size for k in keys if k.gpu == family and k.lora == layer.lora})
        for_lora = " for LoRA" if layer.lora else ""
        return _none(
            f"no {bits} preset{for_lora} for {family} has hidden size {layer.hidden_size} (the "
            f"presets have {', '.join(map(str, widths))}), and SM counts tuned for another width "
            "can slow down a GEMM or a collective"
        )
    if layer.rows < fewest_rows():
        return _none(
            f"a rank has {layer.rows} rows of tokens (micro-batch x sequence / CP / TP), fewer "
            f"than the {fewest_rows()} that any preset was tuned for; its splits and SM counts "
            "would cost more than they hide"
        )
    best = min(same, key=lambda key: _distance(key, layer, bits))
    differs = tuple(_differences(best, layer, bits))
    if not differs:
        return PresetChoice(best.name, "exact", (), "tuned for exactly this layer")
    return PresetChoice(best.name, "nearest", differs, _why_it_serves(best, layer))


def _none(reason: str) -> PresetChoice:
    return PresetChoice(None, "none", (), reason)


def _rows(key: PresetKey) -> int:
    ranks = key.context_parallel_size * key.tensor_parallel_size
    return key.micro_batch_size * key.seq_length // ranks


def _distance(key: PresetKey, layer: LayerShape, bits: str) -> tuple[float, ...]:
    return (
        float(key.precision != bits),
        abs(log2(key.tensor_parallel_size / layer.tp)),
        abs(log2(_rows(key) / layer.rows)),
        abs(log2(key.context_parallel_size / layer.cp)),
    )


def _differences(key: PresetKey, layer: LayerShape, bits: str) -> list[str]:
    pairs = (
        ("", key.gpu, layer.gpu),
        ("", key.precision, bits),
        ("TP ", key.tensor_parallel_size, layer.tp),
        ("CP ", key.context_parallel_size, layer.cp),
        ("micro-batch ", key.micro_batch_size, layer.micro_batch),
        ("sequence ", key.seq_length, layer.sequence),
    )
    return [f"{what}{tuned}, not {here}" for what, tuned, here in pairs if tuned != here]


def _why_it_serves(key: PresetKey, layer: LayerShape) -> str:
    tuned, here = _rows(key), layer.rows
    if tuned == here:
        rows = f"a rank has the same {here} rows of tokens"
    else:
        more = "more" if here > tuned else "fewer"
        rows = (
            f"a rank has {here} rows of tokens, {more} than the {tuned} that it was tuned for, and "
            "GEMM and collective scale equally with them"
        )
    same = f"it was tuned for the same hidden size, {layer.hidden_size}"
    if key.gpu != layer.gpu:
        same += f", and on {key.gpu}, of the same generation as {layer.gpu}"
    return f"{same}; {rows}"
