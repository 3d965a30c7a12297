"""Which communication overlap a Megatron training run gets.

`CommOverlapConfig` is the user's request. `setup()` turns it into effective knobs on the model,
optimizer and DDP configurations: it applies the rules, in the order TP, PP, EP, DP, and keeps a
`Decision` for every knob, so that nothing is switched off unnoticed.

Neither torch nor Megatron-Core is imported here. A rule that depends on their version looks it up
when it is applied, and the configurations are read and written by attribute, so that
`overlapkit explain` can run the same rules on a file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from megatron.bridge.training.decisions import Decision, Outcome, raise_errors
from megatron.bridge.training.rules.context import Context, Gpu, _CommOverlapConfig
from megatron.bridge.training.rules.data_parallel import decide_dp, decide_dp_ignored
from megatron.bridge.training.rules.expert import decide_ep
from megatron.bridge.training.rules.pipeline import PP_INTERLEAVED as PP_INTERLEAVED
from megatron.bridge.training.rules.pipeline import PP_NONE as PP_NONE
from megatron.bridge.training.rules.pipeline import PP_NOT_INTERLEAVED as PP_NOT_INTERLEAVED
from megatron.bridge.training.rules.pipeline import PP_SAME_PEER_HAZARD as PP_SAME_PEER_HAZARD
from megatron.bridge.training.rules.pipeline import PP_WGRAD_DEFERRAL as PP_WGRAD_DEFERRAL
from megatron.bridge.training.rules.pipeline import decide_pp
from megatron.bridge.training.rules.pipeline import pp_hazard as pp_hazard
from megatron.bridge.training.rules.pipeline import select_p2p as select_p2p
from megatron.bridge.training.rules.tensor import TP_USERBUFFERS_DEFAULT, decide_tp
from megatron.bridge.training.software import (
    Software,
    installed_stack,
    is_te_min_version,
    is_torch_min_version,
    te_importable,
)

# Callers import the presets and the userbuffers settings from here, by name.
from megatron.bridge.training.tp_overlap_presets import *  # noqa: F403
from megatron.bridge.training.tp_overlap_presets import get_preset
from megatron.bridge.training.userbuffers.remedies import SWITCH
from megatron.bridge.training.userbuffers.settings import BulkOverlapCfg as BulkOverlapCfg
from megatron.bridge.training.userbuffers.settings import PipelineOverlapCfg as PipelineOverlapCfg
from megatron.bridge.training.userbuffers.settings import (
    RingExchangeOverlapCfg as RingExchangeOverlapCfg,
)
from megatron.bridge.training.userbuffers.settings import TPOverlapCfg as TPOverlapCfg
from megatron.bridge.training.userbuffers.settings import (
    TransformerLayerTPOverlapCfg as TransformerLayerTPOverlapCfg,
)
from megatron.bridge.training.userbuffers.settings import as_te_dict, check_userbuffers
from megatron.bridge.training.versions import Stack

logger = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    # HAVE_TE is determined by importing Transformer Engine, and with it torch: only on request.
    if name == "HAVE_TE":
        return te_importable()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class InstalledSoftware:
    """What is installed, looked up on this module at call time, where callers patch it."""

    @property
    def stack(self) -> Stack:
        return installed_stack()

    def have_te(self) -> bool:
        return bool(sys.modules[__name__].HAVE_TE)

    def is_te_min_version(self, version: str) -> bool:
        return is_te_min_version(version)

    def is_torch_min_version(self, version: str) -> bool:
        return is_torch_min_version(version)


# ---------------------------------------------------------------------------- the configuration

# Megatron-Bridge copies an unset delay_wgrad_compute onto ddp too, as None, which is off there.
_NONE_IS_A_VALUE = frozenset({"tp_comm_overlap_cfg", "bucket_size", "delay_wgrad_compute"})


@dataclass(frozen=True)
class Resolution:
    """What the rules decide about a request on one set of configurations; not yet applied.

    Attributes:
        model: knobs for the model configuration.
        data_parallel: knobs for the optimizer and DDP configurations; None where comm_overlap
            leaves them alone.
        decisions: one for every knob, in the order TP, PP, EP, DP.
        userbuffers: what Transformer Engine would refuse in an effective tp_comm_overlap_cfg, or
            accept and not do. setup() reports these and raises none: Transformer Engine decides.
    """

    model: _CommOverlapConfig
    data_parallel: _CommOverlapConfig | None
    decisions: list[Decision]
    userbuffers: list[Decision]


@dataclass(kw_only=True)
class CommOverlapConfig:
    """The communication overlap that a user requests; None leaves a knob to the rules.

    Attributes:
        tp_comm_overlap: overlap tensor-parallel collectives with their GEMMs (needs TP > 1,
            sequence parallelism and Transformer Engine).
        tp_comm_overlap_cfg: userbuffers settings per GEMM, such as a preset of this module or its
            name; None for Transformer Engine's defaults.
        tp_comm_bootstrap_backend: "nccl", "mpi" or "gloo".
        overlap_p2p_comm: overlap pipeline sends and receives with another chunk's compute.
        batch_p2p_comm: send and receive in one batch; excludes overlap_p2p_comm.
        overlap_grad_reduce: reduce gradients bucket by bucket during the backward.
        overlap_param_gather: gather parameters bucket by bucket during the forward.
        overlap_param_gather_with_optimizer_step: gather the first chunk's parameters during the
            optimizer step.
        align_param_gather: launch the gathers of all pipeline stages at the same time.
        bucket_size: parameters (not bytes) per gradient bucket, or "auto".
        defer_embedding_wgrad_compute: compute the embedding's weight gradients at the end of the
            pipeline.
        wgrad_deferral_limit: number of microbatches to defer; Megatron-Core refuses a negative
            number together with defer_embedding_wgrad_compute.
        data_parallel_size: number of model replicas; ConfigContainer sets it.
        overlap_moe_expert_parallel_comm: overlap the experts' all-to-all with another microbatch.
        delay_wgrad_compute: split off weight gradients to overlap them as well.
    """

    tp_comm_overlap: bool
    tp_comm_overlap_cfg: TransformerLayerTPOverlapCfg | str | None = None
    tp_comm_bootstrap_backend: str | None = "nccl"
    overlap_p2p_comm: bool | None = None
    batch_p2p_comm: bool | None = None
    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None
    overlap_param_gather_with_optimizer_step: bool | None = None
    align_param_gather: bool | None = None
    bucket_size: int | Literal["auto"] | None = None
    defer_embedding_wgrad_compute: bool | None = None
    wgrad_deferral_limit: int | None = None
    data_parallel_size: int | None = None
    overlap_moe_expert_parallel_comm: bool | None = None
    delay_wgrad_compute: bool | None = None

    def __post_init__(self) -> None:
        # Not fields: a configuration written to YAML contains only the request.
        self.user_comm_overlap_cfg: _CommOverlapConfig | None = None
        self.decisions: list[Decision] = []

    def finalize(self) -> None:
        """Record the current request. A second call changes nothing.

        Raises:
            OverlapConfigError: tp_comm_overlap_cfg is the name of an unknown preset.
        """
        if self.user_comm_overlap_cfg is None:
            request = {f.name: getattr(self, f.name) for f in fields(_CommOverlapConfig)}
            if isinstance(request["tp_comm_overlap_cfg"], str):
                request["tp_comm_overlap_cfg"] = get_preset(request["tp_comm_overlap_cfg"])
            self.user_comm_overlap_cfg = _CommOverlapConfig(**request)

    def resolve(
        self,
        model_cfg: Any,
        ddp_cfg: Any,
        software: Software | None = None,
        optimizer_cfg: Any = None,
        gpu: Gpu | None = None,
    ) -> Resolution:
        """Apply every rule to the request; read the configurations, write nothing.

        Args:
            model_cfg: a TransformerConfig or any object with its attributes.
            ddp_cfg: a DistributedDataParallelConfig or any object with its attributes, or None.
            software: what is installed; looked up on this module by default.
            optimizer_cfg: an OptimizerConfig or any object with its attributes.
            gpu: the job's GPU, where it is known: remedies name the preset for it.

        Raises:
            OverlapConfigError: data_parallel_size is needed and not set.
        """
        c = replace(self._context(model_cfg, ddp_cfg, software), optimizer=optimizer_cfg, gpu=gpu)
        model, decisions = self._resolve_model(c)
        data_parallel = None
        if getattr(ddp_cfg, "use_distributed_optimizer", False):
            dp_decisions = list(decide_dp(c))
            data_parallel = self._override_user_cfgs(_CommOverlapConfig())
            _take_over(dp_decisions, data_parallel)
        else:
            dp_decisions = list(decide_dp_ignored(c))
        checked = _check_userbuffers(c, model.tp_comm_overlap_cfg) if model.tp_comm_overlap else []
        return Resolution(model, data_parallel, decisions + dp_decisions, checked)

    def setup(self, model_config: Any, optimizer_config: Any, ddp_config: Any) -> None:
        """Make the overlap effective, in place, on the three configurations.

        `self.decisions` then contains the decision about every knob. May be called again, on the
        same or on other configurations.

        Raises:
            OverlapConfigError: the run would fail, hang or train incorrectly; nothing was changed.
        """
        resolution = self.resolve(model_config, ddp_config, optimizer_cfg=optimizer_config)
        self.decisions = resolution.decisions + resolution.userbuffers
        raise_errors(resolution.decisions)
        self.apply(resolution, model_config, optimizer_config, ddp_config)
        for decision in self.decisions:
            untuned = decision.rule == TP_USERBUFFERS_DEFAULT.id
            if decision.is_finding or (untuned and decision.outcome is Outcome.NOTE):
                _warn(decision)

    def apply(
        self, resolution: Resolution, model_config: Any, optimizer_config: Any, ddp_config: Any
    ) -> None:
        """Write a resolution onto the configurations that it was made for."""
        given = resolution.model.tp_comm_overlap_cfg
        for_te = None if given is None else as_te_dict(given)
        self._apply_cfgs(resolution.model, model_config)
        model_config.tp_comm_overlap_cfg = for_te
        if resolution.model.delay_wgrad_compute and hasattr(ddp_config, "delay_wgrad_compute"):
            # DDP hooks gradients where the model computes them, with every optimizer.
            ddp_config.delay_wgrad_compute = True
        if resolution.data_parallel is not None:
            self._apply_cfgs(resolution.data_parallel, optimizer_config)
            self._apply_cfgs(resolution.data_parallel, ddp_config)

    def _context(self, model_cfg: Any, ddp_cfg: Any, software: Software | None = None) -> Context:
        self.finalize()
        assert self.user_comm_overlap_cfg is not None
        return Context(
            request=self.user_comm_overlap_cfg,
            model=model_cfg,
            ddp=ddp_cfg,
            software=software or InstalledSoftware(),
            data_parallel_size=self.data_parallel_size,
            has_comm_overlap=True,
            sets_data_parallel=bool(getattr(ddp_cfg, "use_distributed_optimizer", False)),
        )

    def _resolve_model(self, c: Context) -> tuple[_CommOverlapConfig, list[Decision]]:
        decisions = [*decide_tp(c), *decide_pp(c), *decide_ep(c)]
        resolved = self._override_user_cfgs(_CommOverlapConfig())
        _take_over(decisions, resolved)
        decisions += pp_hazard(
            c.model,
            overlap_p2p_comm=bool(resolved.overlap_p2p_comm),
            batch_p2p_comm=bool(resolved.batch_p2p_comm),
            section="comm_overlap",
        )
        return resolved, decisions

    def _get_model_comm_overlap_cfgs(self, model_cfg: Any, ddp_config: Any) -> _CommOverlapConfig:
        """The model-side knobs.

        Raises:
            OverlapConfigError: an expert-parallel need is not met, or the pipeline would corrupt
                gradients.
        """
        resolved, decisions = self._resolve_model(self._context(model_cfg, ddp_config))
        raise_errors(decisions)
        for decision in decisions:
            if decision.is_finding:
                _warn(decision)
        return resolved

    def _get_optimizer_overlap_cfgs(self, model_cfg: Any) -> _CommOverlapConfig:
        """The data-parallel knobs.

        Raises:
            OverlapConfigError: data_parallel_size is not set.
        """
        resolved = self._override_user_cfgs(_CommOverlapConfig())
        _take_over(decide_dp(self._context(model_cfg, None)), resolved)
        return resolved

    def _apply_cfgs(self, src_cfg: _CommOverlapConfig, dest_cfg: Any) -> None:
        """Copy each knob onto `dest_cfg` where that has an attribute of the name.

        An unset knob leaves `dest_cfg` alone, except where None is a value.
        """
        for knob in fields(src_cfg):
            value = getattr(src_cfg, knob.name)
            if (value is not None or knob.name in _NONE_IS_A_VALUE) and hasattr(
                dest_cfg, knob.name
            ):
                setattr(dest_cfg, knob.name, value)

    def _override_user_cfgs(self, default_cfg: _CommOverlapConfig) -> _CommOverlapConfig:
        """`default_cfg` with the user's non-None knobs on top, in place."""
        self.finalize()
        for knob in fields(_CommOverlapConfig):
            requested = getattr(self.user_comm_overlap_cfg, knob.name)
            if requested is not None:
                setattr(default_cfg, knob.name, requested)
        return default_cfg


def _check_userbuffers(c: Context, given: Any) -> list[Decision]:
    checked = check_userbuffers(
        given,
        fp8=bool(c.of_model("fp8")),
        also_bf16=bool(c.of_model("first_last_layers_bf16")),
        rs_dgrad=bool(c.of_model("tp_comm_overlap_rs_dgrad")),
    )
    # A preset is named, and has no settings that could be changed where the run is written.
    if isinstance(given, Mapping):
        return checked
    return [d if all(e.key == SWITCH for e in d.edits) else replace(d, edits=()) for d in checked]


def _take_over(decisions: Iterable[Decision], resolved: _CommOverlapConfig) -> None:
    for decision in decisions:
        setattr(resolved, decision.knob.rpartition(".")[2], decision.effective)


def _warn(decision: Decision) -> None:
    remedy = f" To change it: {decision.remedy}." if decision.remedy else ""
    logger.warning("%s: %s (rule %s).%s", decision.knob, decision.reason, decision.rule, remedy)
