"""NeMo 1: ``trainer`` and ``model`` of a Hydra configuration of its megatron_gpt_config.yaml.

Facts of NeMo 1's nemo/collections/nlp/models/language_modeling/megatron_base_model.py and
megatron_gpt_model.py (1.22 to 2.0): the names of its keys, the defaults of its pipeline
communication, and which optimizer uses Megatron-Core's data parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from overlapkit.config.launchers.build import product, settings_of
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.launchers.tree import Keys, Mapped, Tree, with_overrides
from overlapkit.config.reading import Reading
from overlapkit.config.run import Launch, Settings
from overlapkit.config.schema import section_fields

NAME = "NeMo 1"
ROOTS = frozenset({"model", "trainer", "exp_manager"})
_MARKS = frozenset(
    {
        "ub_tp_comm_overlap",
        "ub_tp_comm_overlap_cfg",
        "megatron_amp_O2",
        "mcore_gpt",
        "encoder_seq_length",
        "optim",
        "tensor_model_parallel_size",
        "activations_checkpoint_granularity",
    }
)
_RENAMED = {
    "ub_tp_comm_overlap": "tp_comm_overlap",
    "ub_tp_comm_overlap_cfg": "tp_comm_overlap_cfg",
    "ub_tp_comm_bootstrap_backend": "tp_comm_bootstrap_backend",
    "encoder_seq_length": "seq_length",
    "activations_checkpoint_granularity": "recompute_granularity",
    "activations_checkpoint_method": "recompute_method",
    "activations_checkpoint_num_layers": "recompute_num_layers",
}
"""NeMo 1's names of fields of the model."""
_OWN = frozenset({"fp8", "optim", "tokenizer", "data", "bias", "normalization", "activation"})
"""Keys of NeMo 1's model that are no fields of Megatron-Core, or have other values there."""
_OVERLAP = {
    "overlap_grad_sync": "ddp.overlap_grad_reduce",
    "overlap_param_sync": "ddp.overlap_param_gather",
}
CORE_OPTIMIZER = "mcore_distributed_optim"
APEX_OPTIMIZER = "distributed_fused_adam"


def matches(data: Mapping[str, Any]) -> bool:
    """Whether a configuration is NeMo 1's."""
    model, trainer = data.get("model"), data.get("trainer")
    if not isinstance(model, Mapping):
        return False
    has_trainer = isinstance(trainer, Mapping) and bool({"devices", "num_nodes"} & trainer.keys())
    return bool(_MARKS & model.keys()) and (
        has_trainer or any(name.startswith("ub_tp_comm") for name in map(str, model))
    )


def read(
    tree: Tree,
    overrides: Sequence[str] = (),
    reading: Reading | None = None,
    launch: Launch | None = None,
) -> Settings:
    """The settings of a NeMo 1 configuration.

    Args:
        tree: the configuration.
        overrides: of its own keys, or of Megatron's.
        reading: for which versions and how strictly it is read.
        launch: of the script that starts it; None for a file.

    Raises:
        InputError: a key or value that no run can have.
    """
    tree, others = with_overrides(tree, overrides, ROOTS)
    mapped = Mapped(defaults={"model.overlap_p2p_comm": False, "model.batch_p2p_comm": True})
    fields = section_fields("model")
    for name in tree.under("model"):
        field = _RENAMED.get(name, name)
        if name in _RENAMED or (field in fields and name not in _OWN):
            mapped.take(tree, ("model", name), f"model.{field}")
    for name in ("micro", "global"):
        mapped.take(tree, ("model", f"{name}_batch_size"), f"train.{name}_batch_size")
    _precision(tree, mapped)
    optimizer = str(tree.get("model", "optim", "name") or "fused_adam")
    _data_parallel(tree, mapped, optimizer)
    size = product(tree.get("trainer", "num_nodes") or 1, tree.get("trainer", "devices"))
    found = launch or Launch({})
    size = size or found.world_size
    unknown = f"{tree.path}: trainer.devices and trainer.num_nodes do not both state numbers"
    found = replace(found, world_size=size, world_size_unknown="" if size else unknown)
    return settings_of(tree, mapped, found, _origin(tree, optimizer), others, reading)


def _precision(tree: Tree, mapped: Mapped) -> None:
    precision = str(tree.get("trainer", "precision") or "")
    place = tree.place("trainer", "precision")
    if precision.startswith("bf16"):
        mapped.set("model.bf16", True, place)
        mapped.defaults["model.params_dtype"] = "torch.bfloat16"
        mapped.defaults["model.pipeline_dtype"] = "torch.bfloat16"
    elif precision.startswith("16"):
        mapped.set("model.fp16", True, place)
    if tree.get("model", "fp8"):
        hybrid = tree.get("model", "fp8_hybrid")
        mapped.set("model.fp8", "hybrid" if hybrid else "e4m3", tree.place("model", "fp8"))


def _data_parallel(tree: Tree, mapped: Mapped, optimizer: str) -> None:
    keys: Keys = ("model", "optim")
    shards = optimizer in (CORE_OPTIMIZER, APEX_OPTIMIZER)
    for section in ("ddp", "optimizer"):
        place = tree.place(*keys, "name")
        mapped.set(f"{section}.use_distributed_optimizer", shards, place)
    if not shards:
        return
    for name, dotted in _OVERLAP.items():
        mapped.take(tree, (*keys, name), dotted)
    mapped.take(tree, (*keys, "overlap_param_sync"), "optimizer.overlap_param_gather")
    sync = tree.get(*keys, "grad_sync_dtype")
    mapped.defaults["ddp.grad_reduce_in_fp32"] = str(sync or "fp32") in ("fp32", "float32")
    if optimizer == CORE_OPTIMIZER:
        mapped.take(tree, (*keys, "ddp_bucket_size"), "ddp.bucket_size")
        step = "overlap_param_gather_with_optimizer_step"
        mapped.take(tree, (*keys, step), f"optimizer.{step}")


def _origin(tree: Tree, optimizer: str) -> Origin:
    remarks = [
        "this is NeMo 1's configuration: it builds Megatron-Core's from model and trainer; the "
        "rules of Megatron-Core are applied as Megatron-Bridge has them, for newer versions than "
        "NeMo 1 used: state --core",
        "the defaults are NeMo 1's (point-to-point overlap off, batched)",
    ]
    own = optimizer != CORE_OPTIMIZER
    if optimizer == APEX_OPTIMIZER:
        cap = tree.get("model", "optim", "bucket_cap_mb")
        remarks.append(
            f"model.optim.name {optimizer}: Apex's distributed optimizer reduces gradients and "
            "gathers parameters, in buckets of its own (bucket_cap_mb"
            f"{f': {cap}' if cap else ''}), not Megatron-Core's: rules about data parallelism are "
            f"not applied ({CORE_OPTIMIZER} uses Megatron-Core's)"
        )
    elif own:
        remarks.append(
            f"model.optim.name {optimizer}: NeMo reduces the gradients itself "
            "(grad_allreduce_chunk_size_mb): rules about data parallelism are not applied"
        )
    optim = tree.under("model", "optim")
    if optim.get("overlap_param_sync") and not optim.get("overlap_grad_sync"):
        place = tree.place("model", "optim", "overlap_param_sync")
        remarks.append(
            f"{place}: NeMo 1 stops at start: overlap_param_sync needs overlap_grad_sync"
        )
    if tree.get("model", "mcore_gpt") is not True:
        remarks.append(
            "model.mcore_gpt is not true: NeMo 1 then builds its own model, whose tensor-parallel "
            "overlap is Transformer Engine's alone"
        )
    return Origin(NAME, tuple(remarks), own_data_parallel=own)
