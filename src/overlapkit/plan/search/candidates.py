"""The layouts that a model and a cluster allow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel, hybrid_pattern
from overlapkit.config.run import Settings
from overlapkit.errors import InputError
from overlapkit.plan.search.measures import (
    NONE,
    RING,
    allows,
    cp_comm_changes,
    cp_comm_choices,
    cp_comm_of,
    recompute_changes,
    recompute_choices,
    recompute_of_model,
    saving_settings,
)

SWEPT = ("tp", "pp", "vp", "cp", "ep", "mbs", "recompute", "cp_comm", "saving")
"""What `--sweep` takes, in the order in which layouts are shown. "saving" is FSDP,
offloading and a smaller precision. They are chosen only where nothing fits without. The first two
are offered where the estimate can tell that they are faster."""

_LARGEST = {"tp": 16, "cp": 64, "mbs": 4, "ep": 256}
"""Beyond published practice. TP is also bounded by the NVLink domain."""
_MOST_CHUNKS = 12
"""Virtual stages on one pipeline rank."""
_FEWEST_LOCAL_TOKENS = 2048
"""Tokens of a sequence on a rank, below which more context-parallel ranks do not help."""


@dataclass(frozen=True, order=True, kw_only=True)
class LayoutChoice:
    """How a model is divided, and what saves memory.

    Attributes:
        tp, pp, vp, cp, ep: ranks by dimension, and chunks of a stage; 1 where not divided.
        mbs: sequences of a microbatch.
        recompute: what the backward computes again: "none", "full", or the modules.
        cp_comm: how context-parallel ranks exchange keys and values (cp_comm_type).
        saving: what else a search turned on to save memory: names of
            `measures.SAVINGS`, or a recipe of mixed_precision.
    """

    tp: int
    pp: int
    vp: int
    cp: int
    ep: int
    mbs: int
    recompute: str = NONE
    cp_comm: str = RING
    saving: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """GPUs that share one copy of the model."""
        return self.tp * self.pp * self.cp

    def __str__(self) -> str:
        parts = [f"TP {self.tp}", f"PP {self.pp}"]
        parts += [f"VPP {self.vp}"] if self.vp > 1 else []
        parts += [f"CP {self.cp}"]
        parts += [f"EP {self.ep}"] if self.ep > 1 else []
        parts.append(f"micro-batch {self.mbs}")
        parts += [f"cp_comm_type {self.cp_comm}"] if self.cp > 1 and self.cp_comm != RING else []
        parts += [f"recompute {self.recompute}"] if self.recompute != NONE else []
        parts += self.saving
        return ", ".join(parts)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes that ranks have to divide.

    Attributes:
        layers, heads, groups, ffn, sequence: of the model.
        experts: 0 for a dense model.
        expert_tp: tensor-parallel ranks of an expert; None is the same as TP.
        batch: sequences of a step.
        uneven: whether stages may have unequal numbers of layers, written as a
            pipeline_model_parallel_layout.
        ends: whether embedding and loss may count as a layer each. Stages of hybrids take no notice
            of them (megatron-core 0.16.1, core/ssm/mamba_block.py).
        recompute: what may be recomputed, each as `LayoutChoice.recompute`.
    """

    layers: int
    heads: int
    groups: int
    ffn: int
    sequence: int
    experts: int
    expert_tp: int | None
    batch: int
    uneven: bool = False
    ends: bool = True
    recompute: tuple[str, ...] = (NONE,)


def sizes_of(model: Any, train: Any) -> ModelSizes:
    """The sizes in a run's model and train configurations.

    Raises:
        InputError: a size that a sweep needs is not set.
    """
    for name in ("num_layers", "hidden_size", "num_attention_heads"):
        if not getattr(model, name, None) and not (name == "num_layers" and _pattern(model)):
            raise InputError(f"model.{name} is not set, but a sweep needs it; give model.{name}=N")
    layers = len(_pattern(model)) or model.num_layers
    heads = model.num_attention_heads
    return ModelSizes(
        layers=layers,
        heads=heads,
        groups=model.num_query_groups or heads,
        ffn=model.ffn_hidden_size or 4 * model.hidden_size,
        sequence=model.seq_length or 1024,
        experts=model.num_moe_experts or 0,
        expert_tp=model.expert_tensor_parallel_size,
        batch=train.global_batch_size,
        uneven=_uneven(layers) and not _pattern(model),
        ends=not _pattern(model),
        recompute=recompute_choices(model),
    )


def _pattern(model: Any) -> str:
    """One symbol for each layer of a hybrid; empty for other models."""
    try:
        found = hybrid_pattern(model)
    except UncountableModel:
        # It is reported where the model is read.
        return ""
    return found.blocks if found else ""


def parse_swept(text: str) -> tuple[str, ...]:
    """The dimensions in ``tp,pp,vp``.

    Raises:
        InputError: one of them is not known.
    """
    names = [name.strip().lower().replace("vpp", "vp") for name in text.split(",")]
    for name in names:
        if name not in SWEPT:
            raise InputError(f"--sweep {text}: unknown dimension {name!r}; give {','.join(SWEPT)}")
    return tuple(dict.fromkeys(names))


def candidates(
    sizes: ModelSizes, world_size: int, domain: int, fixed: LayoutChoice, swept: Collection[str]
) -> Iterator[LayoutChoice]:
    """Every layout that divides evenly. Dimensions that are not swept stay as in `fixed`.

    Args:
        sizes: of the model.
        world_size: GPUs of the job.
        domain: GPUs that NVLink connects, the largest TP.
        fixed: the layout as given.
        swept: names of `SWEPT`.
    """

    def powers(name: str, limit: int) -> list[int]:
        if name not in swept:
            return [getattr(fixed, name)]
        most = min(limit, _LARGEST[name])
        return [1 << n for n in range(most.bit_length()) if 1 << n <= most]

    for tp in powers("tp", min(domain, world_size)):
        if sizes.heads % tp or sizes.ffn % tp or (sizes.groups % tp and tp % sizes.groups):
            continue
        for cp in powers("cp", max(sizes.sequence // _FEWEST_LOCAL_TOKENS, 1)):
            if sizes.sequence % (2 * cp * tp if cp > 1 else tp) or world_size % (tp * cp):
                continue
            for pp, vp in _pipelines(sizes, world_size // (tp * cp), fixed, swept):
                ranks = tp * cp * pp
                for ep in powers("ep", sizes.experts) if sizes.experts else [1]:
                    expert_ranks = ep * (sizes.expert_tp or tp)
                    if sizes.experts and (sizes.experts % ep or world_size // pp % expert_ranks):
                        continue
                    for mbs in powers("mbs", sizes.batch):
                        rows, rest = divmod(sizes.batch, mbs * (world_size // ranks))
                        if rest or not rows or (vp > 1 and rows % pp):
                            continue
                        choice = replace(fixed, tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, mbs=mbs)
                        yield from _variants(sizes, choice, swept)


def _variants(
    sizes: ModelSizes, choice: LayoutChoice, swept: Collection[str]
) -> Iterator[LayoutChoice]:
    """A division with each way of saving memory and of exchanging keys and values."""
    kinds = [choice.cp_comm]
    if "cp_comm" in swept:
        kinds = cp_comm_choices(choice.cp, sizes.heads // choice.tp, sizes.groups / choice.tp)
    for recompute in sizes.recompute if "recompute" in swept else [choice.recompute]:
        if not allows(choice.saving, pp=choice.pp, recompute=recompute):
            continue
        for kind in kinds:
            yield replace(choice, recompute=recompute, cp_comm=kind)


def _pipelines(
    sizes: ModelSizes, stages: int, fixed: LayoutChoice, swept: Collection[str]
) -> Iterator[tuple[int, int]]:
    """PP and VPP whose chunks have equal numbers of layers, or nearly so in an odd model."""
    for pp in range(1, min(stages, sizes.layers) + 1) if "pp" in swept else [fixed.pp]:
        if stages % pp:
            continue
        for vp in range(1, _MOST_CHUNKS + 1) if "vp" in swept else [fixed.vp]:
            if vp > 1 and (pp == 1 or pp * vp > sizes.layers):
                continue
            chunks = pp * vp
            even = sizes.layers % chunks == 0 or (
                sizes.ends and _even_with_ends(sizes.layers, chunks)
            )
            even = even or (sizes.uneven and uneven_layout(sizes.layers, chunks) is not None)
            if even or not {"pp", "vp"} & set(swept):
                yield pp, vp


def _even_with_ends(layers: int, chunks: int) -> bool:
    """Whether the chunks are equal if embedding and loss count as one layer each."""
    return chunks > 1 and (layers + 2) % chunks == 0 and (layers + 2) // chunks > 1


MOST_BESIDE_NONE = 2
"""Layers of a chunk beside a last one that has none, as in Megatron-Bridge's recipe on H100."""


def _uneven(layers: int) -> bool:
    """Whether hardly any pipeline divides the layers, with embedding and loss or without."""
    return layers % 2 == 1


def uneven_layout(layers: int, chunks: int, depths: int = 0) -> str | None:
    """A pipeline_model_parallel_layout whose last chunk has room for the output layer and for
    multi-token prediction, as Megatron-Bridge's recipes for DeepSeek-V3 have it; None where the
    layers are too few.

    Args:
        layers: of the model.
        chunks: PP x VPP.
        depths: of multi-token prediction.
    """
    each = -(-(layers + 1) // chunks)
    last = max(layers - each * (chunks - 1), 0)
    first = layers - last - each * (chunks - 2)
    # An end without a layer is out of balance, unless no chunk has many.
    if chunks < 2 or first < 1 or (last == 0 and each > MOST_BESIDE_NONE):
        return None
    end = "t" * (last == 1) or (f"t*{last}" if last else "")
    start = "t" if first == 1 else f"t*{first}"
    middle = f"(t*{each}|)*{chunks - 2}" if chunks > 2 else ""
    return f"E{start}|{middle}{end}{'m' * depths}L"


_OWN_SPLIT = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "pipeline_model_parallel_layout",
)
_ENDS = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")


@dataclass(frozen=True)
class Changes:
    """What a layout changes in a model section.

    Attributes:
        set: keys and their values.
        dropped: keys that no longer hold, and have their default again.
    """

    set: dict[str, Any]
    dropped: tuple[str, ...]


def model_changes(model: Mapping[str, Any], choice: LayoutChoice) -> Changes:
    """The changes that give a model section a layout.

    Its own pipeline split is dropped if PP or VPP changes. 126 layers, as in Llama 3 405B, divide
    over 16 stages only with embedding and loss counted as one layer each; 61 layers, as in
    DeepSeek-V3, only with a layout of their own.
    """
    before = (
        model.get("pipeline_model_parallel_size") or 1,
        model.get("virtual_pipeline_model_parallel_size") or 1,
    )
    changed: dict[str, Any] = {
        "tensor_model_parallel_size": choice.tp,
        "pipeline_model_parallel_size": choice.pp,
        "virtual_pipeline_model_parallel_size": choice.vp if choice.vp > 1 else None,
        "context_parallel_size": choice.cp,
        "expert_model_parallel_size": choice.ep,
        "sequence_parallel": choice.tp > 1,
    }
    dropped: list[str] = []
    if (choice.pp, choice.vp) != before:
        chunks = choice.pp * choice.vp
        hybrid = len(_pattern(SimpleNamespace(**model)))
        layers = model.get("num_layers") or hybrid
        dropped += [name for name in (*_OWN_SPLIT, *_ENDS) if model.get(name)]
        uneven = layers % chunks != 0 and not hybrid
        if uneven and _even_with_ends(layers, chunks):
            changed |= dict.fromkeys(_ENDS, True)
        elif uneven and _uneven(layers):
            layout = uneven_layout(layers, chunks, model.get("mtp_num_layers") or 0)
            changed |= {"pipeline_model_parallel_layout": layout} if layout else {}
    if choice.recompute != recompute_of_model(model):
        changed |= recompute_changes(choice.recompute)
    if choice.cp > 1 and choice.cp_comm != cp_comm_of(model):
        changed |= cp_comm_changes(choice.cp_comm)
    return Changes(changed, tuple(name for name in dropped if name not in changed))


DISPATCHER = "moe_token_dispatcher_type"
_CHOSEN = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    *_OWN_SPLIT,
    *_ENDS,
    *recompute_changes(NONE),
    "recompute_modules",
    "cp_comm_type",
    DISPATCHER,
)
"""Keys of a model section that a plan may choose, except those that go with the overlap."""


def changed_keys(before: Settings, after: Settings, *, layout: bool) -> dict[str, Any]:
    """The keys, dotted, that a plan chose beside the overlap.

    Args:
        before: the settings as given.
        after: as planned.
        layout: whether the layout was chosen; else only what the experts' exchange needs was.
    """
    names = _CHOSEN if layout else (DISPATCHER,)
    keys = [f"model.{name}" for name in names]
    keys += ["train.micro_batch_size"] if layout else []
    old, new = before.flat(), after.flat()
    if not new.get("model.num_moe_experts"):
        keys.remove(f"model.{DISPATCHER}")
        keys = [key for key in keys if key != "model.expert_model_parallel_size"]
    return {key: new.get(key) for key in keys if new.get(key) != old.get(key)}


def measures(choice: LayoutChoice) -> dict[str, Any]:
    """The keys of a model section for what a layout recomputes and how CP ranks exchange."""
    found = {} if choice.recompute == NONE else recompute_changes(choice.recompute)
    if choice.cp > 1 and choice.cp_comm != RING:
        found |= cp_comm_changes(choice.cp_comm)
    return {key: value for key, value in found.items() if value is not None}


def with_layout(settings: Settings, choice: LayoutChoice) -> Settings:
    """The settings with another layout; see `model_changes`."""
    model = dict(settings.values.get("model") or {})
    changes = model_changes(model, choice)
    for name in changes.dropped:
        del model[name]
    values = {
        **settings.values,
        "model": model | changes.set,
        "train": {**(settings.values.get("train") or {}), "micro_batch_size": choice.mbs},
    }
    keys = settings.asked | {f"model.{name}" for name in changes.set} | {"train.micro_batch_size"}
    for key, value in saving_settings(choice.saving, model.get("num_layers") or 0).items():
        section, _, name = key.partition(".")
        content = {**(values.get(section) or {}), name: value} if name else {"_recipe": value}
        values[section] = content
        keys |= {key}
    present = {f"{s}.{key}" for s, content in values.items() for key in (content or {})}
    present |= set(values)
    return replace(settings, values=values, asked=frozenset(k for k in keys if k in present))


def layout_in(run: Any) -> LayoutChoice:
    """The layout of a run."""
    m = run.model
    return LayoutChoice(
        tp=m.tensor_model_parallel_size or 1,
        pp=m.pipeline_model_parallel_size or 1,
        vp=m.virtual_pipeline_model_parallel_size or 1,
        cp=m.context_parallel_size or 1,
        ep=m.expert_model_parallel_size or 1,
        mbs=run.train.micro_batch_size or 1,
        recompute=recompute_of_model(vars(m)),
        cp_comm=cp_comm_of(vars(m)),
    )
