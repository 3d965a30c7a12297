"""What a Megatron-LM command line says beyond the fields of Megatron-Core's configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.versions import NEWEST, Range, Stack

FLAG_VERSIONS = rule(
    "lm.flag-versions",
    Dimension.ANY,
    claim="Megatron-LM's parser stops at a flag that its version does not know, and at a word "
    "after a flag that is not one of its choices.",
    remedy="omit the flag, or use a version of Megatron-LM that has it",
)


@dataclass(frozen=True)
class PassedFlag:
    """A flag, or a word after one, that some versions of Megatron-LM do not know.

    Attributes:
        text: the flag, with the word where that is what the versions differ in.
        knob: the dotted key that it sets.
        versions: those that know it.
        place: where it is given, for messages.
        value: what it sets; None where no setting is read from it.
    """

    text: str
    knob: str
    versions: Range
    place: str
    value: Any = None


@dataclass
class MegatronLmRequest:
    """Flags of Megatron-LM that are not fields of Megatron-Core's configurations.

    Attributes:
        ddp_num_buckets: --ddp-num-buckets.
        grad_reduce_in_bf16: --grad-reduce-in-bf16.
        main_grads_dtype: --main-grads-dtype, "fp32" or "bf16".
        use_torch_fsdp2: --use-torch-fsdp2.
        ckpt_format: --ckpt-format.
        dist_ckpt_optim_fully_reshardable: --dist-ckpt-optim-fully-reshardable.
        save: whether --save is given.
        save_optim: whether --no-save-optim is not given.
        save_params_interval: --save-params-interval.
        save_interval: --save-interval.
        train_iters: --train-iters.
        eval_iters: --eval-iters, batches of an evaluation.
        eval_interval: --eval-interval, steps from one to the next.
        freeze_all_layers: --freeze-all-layers.
        use_legacy_models: --use-legacy-models.
        check_for_nan: whether --no-check-for-nan-in-loss-and-grad is not given.
        high_priority_stream_groups: --high-priority-stream-groups.
        distributed_backend: --distributed-backend.
        num_layers_per_virtual_pipeline_stage: --num-layers-per-virtual-pipeline-stage.
    """

    ddp_num_buckets: int | None = None
    grad_reduce_in_bf16: bool = False
    main_grads_dtype: str = "fp32"
    use_torch_fsdp2: bool = False
    ckpt_format: str = "torch_dist"
    dist_ckpt_optim_fully_reshardable: bool = False
    save: bool = False
    save_optim: bool = True
    save_params_interval: int | None = None
    save_interval: int | None = None
    train_iters: int | None = None
    eval_iters: int = 100
    eval_interval: int = 1000
    freeze_all_layers: bool = False
    use_legacy_models: bool = False
    check_for_nan: bool = True
    high_priority_stream_groups: tuple[str, ...] | list[str] = ()
    distributed_backend: str = "nccl"
    num_layers_per_virtual_pipeline_stage: int | None = None


def stops(found: str) -> str:
    """The reason of an error by Megatron-LM's own checks, after what was found."""
    return f"{found}: Megatron-LM stops at start"


def flags_of_other_versions(
    flags: tuple[PassedFlag, ...], stack: Stack, *, version_known: bool
) -> Iterator[Decision]:
    """Each flag that the stack's Megatron-LM does not know: an error where the version is certain.

    Args:
        flags: those that some versions do not know.
        stack: the versions of the run.
        version_known: whether they are; otherwise no known version has all the flags together.
    """
    version = stack.core or NEWEST.core or ""
    for flag in flags:
        if flag.versions.contains(version):
            continue
        told = f"{flag.place}: {flag.text} is {_history(flag.versions)}"
        if version_known:
            edits = _of_this_version(flag)
            yield FLAG_VERSIONS.error(
                flag.knob,
                None,
                f"{told}; Megatron-LM {version} stops at it",
                either(edits, _NEWER) if edits else f"omit {flag.text.split()[0]}, or {_NEWER}",
                edits,
            )
        else:
            yield FLAG_VERSIONS.decide(
                flag.knob,
                requested=None,
                effective=None,
                reason=f"{told}; no version that is known here has all these flags, so this is an "
                "older Megatron-LM or a fork",
                outcome=Outcome.NOTE,
            )


_NEWER = "use a version of Megatron-LM that has it"
_OTHER_NAMES = {
    "--use-custom-fsdp": "ddp.use_megatron_fsdp",
    "--cuda-graph-modules": "model.cuda_graph_scope",
}
"""By a flag that some versions lack: the key that says the same in those."""
_DISABLED = "--no-tp-comm-"
"""The start of the newer names of flags whose older names all versions have."""


def _of_this_version(flag: PassedFlag) -> tuple[Edit, ...]:
    """The same request with a flag that the version has, where one is known; else without it.

    None where the flag may change what is trained: to omit it is then the user's choice.
    """
    name = flag.text.split()[0]
    own = f"megatron_lm.{name.removeprefix('--').replace('-', '_')}"
    if flag.knob in (own, "optimizer.optimizer"):
        return ()
    gone = Edit(own, REMOVED)
    if name.startswith(_DISABLED):
        return (gone, Edit(flag.knob, False))
    if name in _OTHER_NAMES and flag.value:
        return (gone, Edit(_OTHER_NAMES[name], flag.value))
    return (gone,)


def _history(versions: Range) -> str:
    """When a flag exists, as a sentence goes on."""
    since, until = versions.since, versions.until
    if since is None:
        return f"no longer known from {until}"
    return f"known from {since}" + (f" to before {until}" if until else "")
