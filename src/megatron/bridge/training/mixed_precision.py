"""Mixed precision: one config whose fields are copied over the model, optimizer and DDP configs.

Its values win, because they are copied over the others: a `grad_reduce_in_fp32` or
`fp8_param_gather` that is set on the DDP config is lost, and has to be set here. `setup()` keeps a
decision for each value that it overwrote.

Recipes are data (`mixed_precision_recipes.py`), with dtypes by name: neither importing this module
nor reading a recipe with `mixed_precision_recipe()` loads torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Need,
    Outcome,
    OverlapConfigError,
    raise_errors,
    rule,
    unmet,
)
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.mixed_precision_recipes import (
    DTYPE_FIELDS,
    RECIPES,
    known_recipe_name,
)
from megatron.bridge.training.mixed_precision_recipes import (
    mixed_precision_recipe as mixed_precision_recipe,
)
from megatron.bridge.training.remedies import TWINS, set_here, without_fp4
from megatron.bridge.training.software import (
    Software,
    installed_stack,
    installed_version,
    is_te_min_version,
)
from megatron.bridge.training.versions import Range, Stack, complete

if TYPE_CHECKING:
    import torch

_NVFP4_TE_VERSION = "2.7.0"

_OVERWRITES = rule(
    "precision.overwrites",
    Dimension.PRECISION,
    claim="Every mixed-precision field is copied over the model, optimizer and DDP fields of the "
    "same name, whatever was set there.",
    remedy="set the field in mixed_precision",
)

_ONE_SWITCH = rule(
    "precision.fp8_param_is_fp8_param_gather",
    Dimension.PRECISION,
    claim="fp8_param and fp8_param_gather are one switch under two names: setting either sets "
    "both. Where both are set and differ, fp8_param_gather is used.",
    remedy="set both to the same value, or only one of the two",
)

_ONE_FP4_SWITCH = rule(
    "precision.fp4_param_is_fp4_param_gather",
    Dimension.PRECISION,
    claim="fp4_param and fp4_param_gather are one switch under two names: setting either sets "
    "both. Where both are set and differ, fp4_param_gather is used.",
    remedy="set both to the same value, or only one of the two",
    versions=(Range("bridge", since="0.4.2"),),
    source="Megatron-Bridge ecbd4ead5",
)

_TWIN_OF = TWINS | {gather: param for param, gather in TWINS.items()}


@dataclass
class MixedPrecisionConfig:
    """The precision of parameters, activations, gradients and matrix products.

    `fp8_param` and `fp8_param_gather` are one switch: assigning either assigns both. So are
    `fp4_param` and `fp4_param_gather`.

    Attributes:
        decisions: what the latest `setup()` overwrote, and with what. Not a field.
    """

    fp32: bool = False
    """Train in full precision."""
    fp16: bool = False
    """Train in fp16, with loss scaling."""
    bf16: bool = False
    """Train in bf16."""
    params_dtype: torch.dtype | None = None
    """Dtype of the model's parameters; a dtype's name where torch must not be loaded."""
    pipeline_dtype: torch.dtype | None = None
    """Dtype sent between pipeline stages."""
    autocast_dtype: torch.dtype | None = None
    """Dtype of torch's autocast; None: the dtype of the parameters."""
    autocast_enabled: bool = False
    """Run the model under torch's autocast."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce gradients in fp32: twice the bytes of a bf16 reduction."""

    fp8: str | None = None
    """FP8 format, "e4m3" or "hybrid" (e4m3 forward, e5m2 for gradients); None: no FP8."""
    fp8_recipe: str = "tensorwise"
    """How FP8 scales are computed: "delayed", "tensorwise", "blockwise" or "mxfp8"."""
    first_last_layers_bf16: bool = False
    """Keep the first and last layers in bf16; the two num_layers fields say how many."""
    fp8_margin: int = 0
    """Margin of the scaling factor, as a power of two."""
    fp8_amax_history_len: int = 1
    """Steps of amax history that delayed scaling uses."""
    fp8_amax_compute_algo: str = "most_recent"
    """What delayed scaling takes from that history: "most_recent" or "max"."""
    fp8_wgrad: bool = True
    """Compute weight gradients in FP8 too."""
    fp8_dot_product_attention: bool = False
    """Run the attention product in FP8."""
    fp8_multi_head_attention: bool = False
    """Keep the complete multi-head attention, with its inputs and outputs, in FP8."""
    fp8_param: bool | None = None
    """Store parameters in FP8; None: the same as fp8_param_gather."""
    fp8_param_gather: bool = False
    """Gather parameters in FP8: half the bytes of a bf16 all-gather."""

    fp4: str | None = None
    """FP4 format, "e2m1"; None: no FP4."""
    fp4_recipe: str = "nvfp4"
    """How FP4 scales are computed."""
    fp4_param: bool | None = None
    """Store parameters in FP4; None: the same as fp4_param_gather."""
    fp4_param_gather: bool = False
    """Gather parameters in FP4: a quarter of the bytes of a bf16 all-gather, and the scales."""

    loss_scale: float | None = None
    """Fixed loss scale; None: dynamic. Used in fp16."""
    initial_loss_scale: float | None = 2**32
    """Loss scale that dynamic scaling starts from."""
    min_loss_scale: float = 1.0
    """Smallest loss scale of dynamic scaling."""
    loss_scale_window: float = 1000
    """Steps without overflow after which dynamic scaling raises the scale."""
    hysteresis: int = 2
    """Overflows after which dynamic scaling lowers the scale."""

    num_layers_at_start_in_bf16: int = 0
    """Layers at the start that stay in bf16, with first_last_layers_bf16."""
    num_layers_at_end_in_bf16: int = 0
    """Layers at the end that stay in bf16, with first_last_layers_bf16."""
    reuse_grad_buf_for_mxfp8_param_ag: bool = False
    """Gather MXFP8 parameters through the gradient buffer instead of a separate buffer."""

    def __new__(cls, *args: Any, **kwargs: Any) -> MixedPrecisionConfig:
        # The dataclass fills in fp8_param_gather=False where it was not given. Only here can a
        # given False be distinguished from the default.
        self = super().__new__(cls)
        given = {*kwargs, *(f.name for f in fields(cls)[: len(args)])}
        self.__dict__["given"] = frozenset(given)
        return self

    given: ClassVar[frozenset[str]] = frozenset()
    """The fields that the caller gave; each instance has its own. Not a field."""

    def __post_init__(self) -> None:
        given = self.given
        twins: list[Decision] = []
        for name, twin in TWINS.items():
            param, gather = getattr(self, name), getattr(self, twin)
            if param is None or param == gather:
                setattr(self, name, gather)
            elif twin in given:
                # As in Megatron-Bridge, whose dataclass assigns it last.
                twins.append(_twin_conflict(name, param, gather))
                setattr(self, name, gather)
            else:
                setattr(self, twin, param)
        self.twins = twins
        self.decisions: list[Decision] = []

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        twin = _TWIN_OF.get(name)
        constructed = "decisions" in self.__dict__
        if twin is not None and value is not None and constructed:
            super().__setattr__(twin, value)

    def finalize(self, *, software: Software | None = None) -> None:
        """Fill in what follows from other fields, and check them. A second call changes nothing.

        Args:
            software: says which Transformer Engine is available; None: the installed one.

        Raises:
            OverlapConfigError: the fields contradict each other, or need a newer
                Transformer Engine.
        """
        for name, twin in TWINS.items():
            if getattr(self, name) is None:
                setattr(self, name, getattr(self, twin))
        raise_errors(precision_errors(self, software=software))

    def setup(
        self,
        model_config: Any,
        optimizer_config: Any = None,
        ddp_config: Any = None,
        *,
        software: Software | None = None,
    ) -> None:
        """Finalize, then copy every field, including None, onto the configs that have it.

        A config is read and written by attribute: Megatron-Core's own, or any other object. May be
        repeated; `decisions` then contains what the latest call overwrote.

        Args:
            software: as for `finalize()`.

        Raises:
            OverlapConfigError: as `finalize()`; nothing was copied.
        """
        self.finalize(software=software)
        sections = {"model": model_config, "optimizer": optimizer_config, "ddp": ddp_config}
        self.decisions = list(self.twins)
        for section, target in sections.items():
            if target is not None:
                self.decisions += _overwrites(section, target, self)
                update_config_with_precision_overrides(self, target)


def update_config_with_precision_overrides(
    mixed_precision_config: MixedPrecisionConfig, config: Any
) -> Any:
    """Copy every field, including None, onto `config` where it has an attribute of that name.

    Returns:
        `config` itself.
    """
    for name in _shared_fields(mixed_precision_config, config):
        setattr(config, name, getattr(mixed_precision_config, name))
    return config


def _shared_fields(config: MixedPrecisionConfig, target: Any) -> list[str]:
    return [f.name for f in fields(config) if hasattr(target, f.name)]


def _overwrites(section: str, target: Any, config: MixedPrecisionConfig) -> list[Decision]:
    """A note for each value of `target` that `config` will replace with another one."""
    values = {
        name: (getattr(target, name), getattr(config, name))
        for name in _shared_fields(config, target)
    }
    return [
        _OVERWRITES.decide(
            f"{section}.{name}",
            requested=former,
            effective=new,
            reason=f"mixed_precision.{name}={new!r} was copied over {section}.{name}={former!r}.",
            outcome=Outcome.NOTE,
            edits=set_here(config, name, former),
        )
        for name, (former, new) in values.items()
        if former != new
    ]


def _twin_conflict(name: str, param: bool, gather: bool) -> Decision:
    twin = TWINS[name]
    return (_ONE_SWITCH if name == "fp8_param" else _ONE_FP4_SWITCH).decide(
        f"mixed_precision.{name}",
        requested=param,
        effective=gather,
        reason=f"{name}={param!r} and {twin}={gather!r} are one switch and differ: {twin} is used",
        outcome=Outcome.REFUSED,
        edits=(Edit(f"mixed_precision.{name}", gather),),
    )


@dataclass(frozen=True)
class _Context:
    config: MixedPrecisionConfig
    is_te_min_version: Callable[[str], bool]
    stack: Stack


_NEEDS: tuple[tuple[str, Need[_Context]], ...] = (
    (
        "fp8_param_gather",
        Need(
            rule(
                "precision.mxfp8_gather_reuses_grad_buffer",
                Dimension.PRECISION,
                claim="fp8_param_gather with the mxfp8 recipe needs "
                "reuse_grad_buf_for_mxfp8_param_ag.",
                remedy="set mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=true, or "
                "mixed_precision.fp8_param_gather=false",
                edits=(Edit("mixed_precision.reuse_grad_buf_for_mxfp8_param_ag", True),),
                # Newer versions look at the DDP config instead, where Megatron-FSDP is exempt.
                versions=(Range("bridge", until="0.5.1"),),
                source="Megatron-Bridge 6e39e973b",
            ),
            met=lambda c: (
                not c.config.fp8_param_gather
                or c.config.fp8_recipe != "mxfp8"
                or c.config.reuse_grad_buf_for_mxfp8_param_ag
            ),
            found=lambda c: (
                'fp8_param_gather is on with fp8_recipe="mxfp8", and '
                "reuse_grad_buf_for_mxfp8_param_ag is off."
            ),
        ),
    ),
    (
        "fp4",
        Need(
            rule(
                "precision.fp4_excludes_fp8",
                Dimension.PRECISION,
                claim="fp4 and fp8 exclude each other.",
                remedy="set mixed_precision.fp4=null, or mixed_precision.fp8=null",
            ),
            met=lambda c: not (c.config.fp4 and c.config.fp8),
            found=lambda c: f"fp4={c.config.fp4!r} and fp8={c.config.fp8!r} are both set.",
            edits=lambda c: without_fp4(c.config),
            otherwise="mixed_precision.fp8=null",
        ),
    ),
    (
        "fp4",
        Need(
            rule(
                "precision.fp4_needs_te",
                Dimension.PRECISION,
                claim=f"fp4 needs Transformer Engine >= {_NVFP4_TE_VERSION}.",
                remedy="set mixed_precision.fp4=null, or install Transformer Engine >= "
                f"{_NVFP4_TE_VERSION}",
            ),
            met=lambda c: not c.config.fp4 or c.is_te_min_version(_NVFP4_TE_VERSION),
            found=lambda c: (
                f"fp4={c.config.fp4!r} is set, and Transformer Engine is absent or older than "
                f"{_NVFP4_TE_VERSION}."
            ),
            edits=lambda c: without_fp4(c.config),
            otherwise=f"install Transformer Engine >= {_NVFP4_TE_VERSION}",
        ),
    ),
)


def precision_errors(
    config: MixedPrecisionConfig, *, software: Software | None = None
) -> list[Decision]:
    """Why a run must not start with `config`; empty where it may. Changes nothing.

    Args:
        config: the mixed-precision configuration.
        software: says which Transformer Engine is available; None: the installed one, looked up
            with this module's `is_te_min_version`, and the Megatron-Bridge that goes with the
            installed Megatron-Core.
    """
    context = _Context(
        config,
        software.is_te_min_version if software else is_te_min_version,
        software.stack if software else complete(installed_version("megatron-core"), None),
    )
    return [
        broken.decide(
            f"mixed_precision.{knob}",
            requested=getattr(config, knob),
            effective=None,
            outcome=Outcome.ERROR,
        )
        for knob, need in _NEEDS
        for broken in unmet([need], context)
    ]


MIXED_PRECISION_RECIPES: dict[str, Callable[[], MixedPrecisionConfig]] = {}
"""What `get_mixed_precision_config()` knows: `RECIPES`, and what `register()` added.

Each recipe is there twice: under its name, and under its name with dashes for underscores.
"""


def register(func: Callable[[], MixedPrecisionConfig]) -> Callable[[], MixedPrecisionConfig]:
    """Make a recipe known to `get_mixed_precision_config()` under its function's name."""
    name = func.__name__
    MIXED_PRECISION_RECIPES[name] = MIXED_PRECISION_RECIPES[name.replace("_", "-")] = func
    return func


def _recipe_function(name: str) -> Callable[[], MixedPrecisionConfig]:
    def recipe() -> MixedPrecisionConfig:
        import torch

        values = mixed_precision_recipe(name, installed_stack())
        return MixedPrecisionConfig(
            **{k: getattr(torch, v) if k in DTYPE_FIELDS else v for k, v in values.items()}
        )

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = f"The {name} recipe, as a new config."
    return recipe


# Each recipe is a function of this module too: bf16_mixed() and so on.
globals().update({name: register(_recipe_function(name)) for name in RECIPES})


def get_mixed_precision_config(name: str | MixedPrecisionConfig) -> MixedPrecisionConfig:
    """A new config for a recipe's name, dtypes as torch dtypes; a config is returned as it is.

    Raises:
        OverlapConfigError: no such recipe, or not a name; the message lists the known ones.
    """
    if isinstance(name, MixedPrecisionConfig):
        return name
    known = [known for known in MIXED_PRECISION_RECIPES if "-" not in known]
    if not isinstance(name, str):
        raise OverlapConfigError(
            f"mixed_precision={name!r} is neither a recipe's name nor a MixedPrecisionConfig. "
            f"Known names: {', '.join(known)}."
        )
    return MIXED_PRECISION_RECIPES[known_recipe_name(name, known)]()
