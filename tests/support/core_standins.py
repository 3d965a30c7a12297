"""A Megatron-Core that has a version's configuration fields and nothing else, without torch.

The fields are those of `scripts/version_facts/core_fields.json`. A class has exactly the fields of
its version, so that whoever reads another one gets an AttributeError.
"""

from __future__ import annotations

import json
import sys
from dataclasses import field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

FACTS = Path(__file__).parents[2] / "scripts" / "version_facts" / "core_fields.json"
_BASES = {"transformer": "model_parallel", "mla": "transformer"}


def versions() -> list[str]:
    """The versions of the facts, oldest first."""
    return list(json.loads(FACTS.read_bytes())["versions"])


def fields_of(version: str) -> dict[str, dict[str, Any]]:
    """Group to its fields and their defaults; None where a default is no literal."""
    groups: dict[str, dict[str, Any]] = {}
    for name, facts in json.loads(FACTS.read_bytes())["versions"].items():
        for group, added in facts.get("base", facts.get("added", {})).items():
            for key, fact in added.items():
                default = fact["default"]
                literal = not (isinstance(default, str) and default.startswith(("=", "<")))
                groups.setdefault(group, {})[key] = default if literal else None
        for dotted in facts.get("removed", []):
            group, _, key = dotted.rpartition(".")
            groups.get(group, {}).pop(key, None)
        for group, changed in facts.get("changed_default", {}).items():
            groups[group].update({key: change["to"] for key, change in changed.items()})
        if name == version:
            return groups
    raise LookupError(version)


def install(version: str) -> None:
    """Put the stand-ins into `sys.modules`; for a process of its own."""
    groups = fields_of(version)
    classes = {
        group: _dataclass(name, groups[group])
        for group, name in (("ddp", "DistributedDataParallelConfig"), ("optimizer", "Optimizer"))
    }
    base: type = object
    for group in ("model_parallel", "transformer", "mla"):
        classes[group] = base = _dataclass(group, groups[group], base)
    own = {f.name for f in fields(base)}
    _module(
        "megatron.core.transformer.transformer_config", TransformerConfig=classes["transformer"]
    )
    _module("megatron.core.distributed", DistributedDataParallelConfig=classes["ddp"])
    _module("megatron.core.optimizer", OptimizerConfig=classes["optimizer"])
    parts = ("attn", "mlp", "moe", "moe_router", "moe_preprocess", "mamba")
    enums = {"CudaGraphScope": Enum("CudaGraphScope", ("full_iteration", *parts))}
    if "cuda_graph_modules" in own:
        enums["CudaGraphModule"] = Enum("CudaGraphModule", parts)
    _module("megatron.core.transformer.enums", **enums)
    _models(own, classes["transformer"])


def _dataclass(name: str, defaults: dict[str, Any], base: type = object) -> type:
    def default(value: Any) -> Any:
        return field(default_factory=lambda: list(value)) if isinstance(value, list) else value

    made = [(key, Any, default(value)) for key, value in defaults.items()]
    nothing = {"__post_init__": lambda self: None}
    return make_dataclass(name, made, bases=(base,), namespace=nothing)


def _models(own: set[str], transformer: type) -> None:
    class Spec:
        """A layer's spec, and what it was made of."""

        def __init__(self, **arguments: Any) -> None:
            unknown = set(arguments) - own - {"num_experts", "use_te_op_fuser"}
            assert not unknown, f"this Megatron-Core has no field {unknown}"
            self.arguments = arguments

    class Submodules:
        layer_specs: tuple[Any, ...] = ()

    class Model:
        """A model: the arguments that it was built with."""

        def __init__(self, config: Any, **arguments: Any) -> None:
            self.config, self.arguments = config, arguments

    def block(config: Any, *_: Any, **__: Any) -> Submodules:
        # Megatron-Core takes its own class here, not a configuration that has one inside.
        assert isinstance(config, transformer)
        return Submodules()

    _module("megatron.core.transformer.spec_utils", ModuleSpec=Spec)
    _module("megatron.core.transformer.transformer_block", TransformerBlockSubmodules=Submodules)
    _module(
        "megatron.core.models.gpt.gpt_layer_specs",
        HAVE_TE=True,
        get_gpt_layer_with_transformer_engine_spec=Spec,
        get_gpt_layer_local_spec=Spec,
        get_gpt_decoder_block_spec=block,
        get_gpt_decoder_layer_specs=lambda config, *_: [Spec()],
        get_gpt_mtp_block_spec=lambda config, spec, **_: "mtp",
    )
    _module("megatron.core.models.gpt.gpt_model", GPTModel=Model)
    _module("megatron.core.models.T5.t5_model", T5Model=Model)
    te, local = "with_transformer_engine_default", "with_local"
    _module(
        "megatron.core.models.T5.t5_spec",
        HAVE_TE=True,
        **{
            f"{side}_model_{kind}_spec": Spec
            for side in ("encoder", "decoder")
            for kind in (te, local)
        },
    )
    state = SimpleNamespace(
        get_virtual_pipeline_model_parallel_world_size=lambda: None,
        is_pipeline_first_stage=lambda **_: True,
        is_pipeline_last_stage=lambda **_: True,
    )
    sys.modules["megatron.core"].parallel_state = state  # type: ignore[attr-defined]


def _module(name: str, **contents: Any) -> None:
    """A module with these contents, and its packages."""
    parts = name.split(".")
    for end in range(2, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = sys.modules[path] = ModuleType(path)
            module.__path__ = []
            if end > 2:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)
