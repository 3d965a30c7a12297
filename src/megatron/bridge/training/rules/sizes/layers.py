"""Layers that pipeline stages and their chunks must divide, as Megatron-Core checks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.sizes.near import divisors, nearest, would_do

_PP = "model.pipeline_model_parallel_size"
_VPP = "model.virtual_pipeline_model_parallel_size"
_ENDS = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
_COUNTED = {
    "account_for_embedding_in_pipeline_split": "the embedding",
    "account_for_loss_in_pipeline_split": "the loss",
}

STAGES_DIVIDE = rule(
    "core.stages-divide-layers",
    Dimension.PP,
    claim="Megatron-Core refuses a pipeline whose stages do not divide the layers. The embedding "
    "and the loss count as layers with account_for_embedding_in_pipeline_split and "
    "account_for_loss_in_pipeline_split; a first or last stage of another size is taken off "
    "before. A pipeline_model_parallel_layout places each layer itself.",
    remedy="use a pipeline_model_parallel_size that divides the layers, or give the first and the "
    "last stage a size of their own",
    source="Megatron-Core's TransformerConfig.__post_init__ and get_num_layers_to_build",
)
CHUNKS_DIVIDE = rule(
    "core.chunks-divide-layers",
    Dimension.PP,
    claim="Megatron-Core refuses a virtual_pipeline_model_parallel_size that does not divide the "
    "layers of every stage, counted as core.stages-divide-layers says.",
    remedy="use a virtual_pipeline_model_parallel_size that divides the layers of a stage",
    source="Megatron-Core's TransformerConfig.__post_init__ and get_num_layers_to_build",
)
CHUNKS_NEED_STAGES = rule(
    "core.chunks-need-stages",
    Dimension.PP,
    claim="Megatron-Core refuses a virtual_pipeline_model_parallel_size, 1 too, without pipeline "
    "stages (PP 1).",
    remedy="set model.virtual_pipeline_model_parallel_size=null, or use pipeline stages",
    source="Megatron-Core's initialize_model_parallel",
)
ENDS_OR_COUNTED = rule(
    "core.stage-sizes-exclude",
    Dimension.PP,
    claim="Megatron-Core refuses a size of the first or last stage together with an embedding or "
    "loss that counts as a layer, and either together with a pipeline_model_parallel_layout.",
    remedy="keep one of the three",
    source="Megatron-Core's TransformerConfig.__post_init__",
)


@dataclass(frozen=True)
class Stages:
    """The layers of a pipeline's stages, before they are known to divide.

    Attributes:
        fixed: layers of the stages that have a size of their own.
        left: layers for the other stages, with what counts as one.
        stages: how many other stages there are.
        said: the layers as a reason names them.
    """

    fixed: tuple[int, ...]
    left: int
    stages: int
    said: str

    @property
    def divides(self) -> bool:
        """Whether the other stages divide their layers."""
        if not self.stages or not self.left:
            return not self.stages and not self.left
        return self.left > 0 and self.left % self.stages == 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The layers of each kind of stage, where they divide."""
        return (*self.fixed, *((self.left // self.stages,) if self.stages else ()))


def stages_of(c: Context, pp: int | None = None) -> Stages | None:
    """The stages of a run, or of the same run with another number of them; None where the layers
    are not divided evenly by Megatron-Core, or are not known."""
    layers = c.of_model("num_layers")
    if not layers or c.of_model("pipeline_model_parallel_layout") or c.is_hybrid:
        return None
    counted = [what for name, what in _COUNTED.items() if c.of_model(name)]
    fixed = tuple(n for name in _ENDS if (n := c.of_model(name)) is not None)
    said = f"{layers} layers"
    if counted:
        said += f" ({layers + len(counted)} with {' and '.join(counted)})"
    if fixed:
        said += f" ({layers - sum(fixed)} without the stages that have a size of their own)"
    return Stages(
        fixed, layers + len(counted) - sum(fixed), (pp or c.pipeline_size) - len(fixed), said
    )


def layer_checks(c: Context) -> Iterator[Decision]:
    """Whether stages divide the layers, and chunks the layers of a stage."""
    pp, vpp = c.pipeline_size, c.of_model("virtual_pipeline_model_parallel_size")
    exclusive = list(_exclusive(c))
    yield from exclusive
    if vpp is not None and pp == 1:
        yield CHUNKS_NEED_STAGES.error(
            _VPP,
            vpp,
            "pipeline_model_parallel_size is 1: Megatron-Core raises a RuntimeError at start",
            edits=(Edit(_VPP, None),),
        )
        return
    stages = stages_of(c)
    if stages is None or pp == 1 or exclusive:
        return
    if not stages.divides:
        yield _other_stages(c, stages)
    elif vpp is not None and any(size % vpp for size in stages.sizes):
        yield _other_chunks(c, stages, vpp)


def _exclusive(c: Context) -> Iterator[Decision]:
    ends = [name for name in _ENDS if c.of_model(name) is not None]
    counted = [name for name in _COUNTED if c.of_model(name)]
    layout = ["pipeline_model_parallel_layout"]
    given = [names for names in (layout if c.of_model(layout[0]) else [], ends, counted) if names]
    if len(given) < 2:
        return
    # The most detailed of them stays.
    gone = [name for names in given[1:] for name in names]
    yield ENDS_OR_COUNTED.error(
        f"model.{gone[0]}",
        c.of_model(gone[0]),
        f"{' and '.join(names[0] for names in given)} are set: Megatron-Core raises a ValueError",
        edits=tuple(Edit(f"model.{name}", None if name in ends else False) for name in gone),
    )


def _other_stages(c: Context, stages: Stages) -> Decision:
    pp = c.pipeline_size
    # A batch that fits no number of stages is a finding of its own.
    near = nearest(pp, _fitting_sizes(c)) or nearest(pp, _fitting_sizes(c, for_batch=False))
    alternatives = [_counted(c, stages), _first_stage(c, stages)]
    if near:
        alone = near[0] == 1 and c.of_model("virtual_pipeline_model_parallel_size") is not None
        edits = (Edit(_PP, near[0]), *((Edit(_VPP, None),) if alone else ()))
        alternatives.append(edits)
    made = [edits for edits in alternatives if edits]
    return STAGES_DIVIDE.error(
        _PP,
        pp,
        f"{stages.said} do not divide into {stages.stages} "
        + ("other stages" if stages.fixed else "stages")
        + f": Megatron-Core refuses it when the model is built{would_do(near, 'stages')}",
        ", or ".join(map(in_words, made)) or None,
        made[0] if made else (),
    )


def _counted(c: Context, stages: Stages) -> tuple[Edit, ...]:
    """Whether the embedding and the loss count, changed so that the layers divide."""
    now = {name: bool(c.of_model(name)) for name in _COUNTED}
    chunks = c.of_model("virtual_pipeline_model_parallel_size") or 1
    found = []
    for counts in product((True, False), repeat=len(now)):
        edits = tuple(
            Edit(f"model.{n}", on) for n, on in zip(now, counts, strict=True) if on != now[n]
        )
        total = stages.left - sum(now.values()) + sum(counts)
        if edits and not stages.fixed and total % (c.pipeline_size * chunks) == 0:
            found.append(edits)
    return min(found, key=len, default=())


def _first_stage(c: Context, stages: Stages) -> tuple[Edit, ...]:
    """Another size of the first stage, or of the one that has one, so that the others divide."""
    given = [name for name in _ENDS if c.of_model(name) is not None]
    if len(given) > 1 or any(c.of_model(name) for name in _COUNTED):
        return ()
    total = stages.left + sum(stages.fixed)
    others = c.pipeline_size - 1
    chunks = c.of_model("virtual_pipeline_model_parallel_size") or 1
    wanted = stages.fixed[0] if given else total // c.pipeline_size
    fit = (
        size
        for size in range(chunks, total, chunks)
        if (total - size) % (others * chunks) == 0 and 2 * abs(size - wanted) <= wanted
    )
    return tuple(Edit(f"model.{[*given, _ENDS[0]][0]}", n) for n in nearest(wanted, fit, most=1))


def _fitting_sizes(c: Context, *, for_batch: bool = True) -> Iterator[int]:
    """Numbers of stages that the GPUs, the layers, their chunks and perhaps the batch allow."""
    ranks = (c.data_parallel_size or 1) * c.pipeline_size
    chunks = c.of_model("virtual_pipeline_model_parallel_size") or 1
    micro, batch = (getattr(c.batch, f"{name}_batch_size", None) for name in ("micro", "global"))
    for size in divisors(ranks):
        stages = stages_of(c, size)
        if stages is None or stages.stages < 0 or not stages.divides:
            continue
        whole = size == 1 or not any(layers % chunks for layers in stages.sizes)
        rest = batch % (micro * (ranks // size)) if for_batch and micro and batch else 0
        if whole and not rest:
            yield size


def _other_chunks(c: Context, stages: Stages, vpp: int) -> Decision:
    each = stages.sizes
    near = nearest(vpp, (n for n in divisors(gcd(*each)) if n > 1))
    edits = (Edit(_VPP, near[0] if near else None),)
    sizes = " and ".join(str(n) for n in dict.fromkeys(each))
    off = ", or use no virtual pipeline" if near else ""
    return CHUNKS_DIVIDE.decide(
        _VPP,
        requested=vpp,
        effective=vpp,
        reason=f"{stages.said} on {c.pipeline_size} stages are {sizes} on a stage, which {vpp} "
        "chunks do not divide: Megatron-Core refuses it when the model is built"
        + would_do(near, "chunks"),
        outcome=Outcome.ERROR,
        remedy=in_words(edits) + off,
        edits=edits,
    )
