"""What NVIDIA's performance recipes set and a table of published throughput does not tell."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from published_rows import Published

RECIPES = Path(__file__).resolve().parent / "data" / "recipes.json"
OF_BRIDGE = ("", "bridge-moe", "bridge-llama-rerun")
"""Origins whose rows were measured with Megatron-Bridge's performance recipes."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a performance recipe sets and a table does not tell.

    Attributes:
        model: start of the model's name, in lower case.
        source: where the recipe is read: a commit of a configuration file or a pull request.
        gpus, precisions, since, until, mbs, gbs, pp, vp, ep, fsdp: what the recipe is for; anything
            where not set. `since` is the first release and `until` the first that differs;
            `precisions` names mixed_precision; a `vp` of 1 means no virtual stages.
        mixed_precision: the recipe of precision, where it is not the one that the row's precision
            names; with its layers in BF16.
        dispatcher: moe_token_dispatcher_type, in place of what the row assumes.
        graph: "full" for CUDA graphs of the entire iteration, else the modules of a layer that
            Transformer Engine captures; none where empty.
        ep_overlap: overlap_moe_expert_parallel_comm.
        tp_overlap: tp_comm_overlap, where there is tensor parallelism.
        grad_overlap: overlap_grad_reduce.
        recompute: modules that are recomputed.
        full_layers: layers of each chunk that are recomputed entirely.
        offload_layers: layers whose activations are kept in the host's memory.
    """

    model: str
    source: str = ""
    gpus: list[str] = []
    precisions: list[str] = []
    since: str = ""
    until: str = ""
    mbs: int | None = None
    gbs: int | None = None
    pp: int | None = None
    vp: int | None = None
    ep: int | None = None
    fsdp: bool | None = None
    mixed_precision: str = ""
    dispatcher: str = ""
    graph: str | list[str] = []
    ep_overlap: bool = False
    tp_overlap: bool = True
    grad_overlap: bool = True
    recompute: list[str] = []
    full_layers: int | None = None
    offload_layers: int | None = None

    def fits(self, row: Published, gpu: str, precision: str) -> bool:
        """Whether it is the recipe of a row."""
        release = release_of(row.release)
        return (
            row.model.lower().startswith(self.model)
            and (not self.gpus or gpu in self.gpus)
            and (not self.precisions or precision in self.precisions)
            and release >= release_of(self.since)
            and (not self.until or release < release_of(self.until))
            and self.mbs in (None, row.mbs)
            and self.gbs in (None, row.gbs)
            and self.pp in (None, row.pp)
            and self.vp in (None, row.vp or 1)
            and self.ep in (None, row.ep)
            and self.fsdp in (None, bool(row.fsdp))
        )

    def settings(self) -> dict[str, Any]:
        """The settings of the model section."""
        model: dict[str, Any] = {}
        if self.dispatcher:
            model["moe_token_dispatcher_type"] = self.dispatcher
        if self.graph == "full":
            model |= {"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]}
        elif self.graph:
            model |= {"cuda_graph_impl": "transformer_engine", "cuda_graph_scope": self.graph}
        if self.recompute:
            model |= {"recompute_granularity": "selective", "recompute_modules": self.recompute}
        if self.full_layers:
            model |= {
                "recompute_granularity": "full",
                "recompute_method": "block",
                "recompute_num_layers": self.full_layers,
            }
        if self.offload_layers:
            model |= {"cpu_offloading": True, "cpu_offloading_num_layers": self.offload_layers}
        return model

    def overlap(self, tp: int) -> dict[str, Any]:
        """The settings of the comm_overlap section."""
        chosen: dict[str, Any] = {
            "tp_comm_overlap": tp > 1 and self.tp_overlap,
            "overlap_moe_expert_parallel_comm": self.ep_overlap,
        }
        return chosen if self.grad_overlap else chosen | {"overlap_grad_reduce": False}


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How recipes divide a model over a pipeline.

    Attributes:
        model: start of the model's name, in lower case.
        chunks: PP x VPP.
        layout: pipeline_model_parallel_layout; "m" where multi-token prediction would be.
    """

    model: str
    chunks: int
    layout: str


class Recipes(msgspec.Struct, frozen=True):
    """The file of recipes.

    Attributes:
        recipes: the first that fits a row is the row's.
        layouts: of pipelines.
    """

    recipes: list[Recipe]
    layouts: list[Split]


@cache
def recipes() -> Recipes:
    """All that are known."""
    return msgspec.json.decode(RECIPES.read_bytes(), type=Recipes)


def pipeline_split(name: str, model: dict[str, Any], pp: int, vp: int) -> dict[str, Any]:
    """The settings that divide a model's layers over stages as recipes do; none for one stage.

    Args:
        name: of the model, as a table has it.
        model: its settings.
        pp, vp: stages, and chunks of each.
    """
    for split in recipes().layouts:
        if name.lower().startswith(split.model) and split.chunks == pp * vp:
            layout = split.layout.replace("m", "m" * (model.get("mtp_num_layers") or 0))
            return {"pipeline_model_parallel_layout": layout}
    if model["num_layers"] % (pp * vp):
        return {
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        }
    return {}


def release_of(text: str) -> tuple[int, ...]:
    """The numbers of a release; none where a table names none, which is before all others."""
    words = text.split()
    return tuple(int(part) for part in words[0].split(".")) if words else ()


def recipe_for(row: Published, gpu: str, precision: str) -> Recipe:
    """The recipe that a row was measured with, as far as it is known."""
    if row.origin in OF_BRIDGE:
        for one in recipes().recipes:
            if one.fits(row, gpu, precision):
                return one
    return Recipe(model="")
