"""The Python that is emitted runs, and builds the configuration that the YAML describes."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import (
    AssumedSoftware,
    installed_stack,
    installed_version,
)
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value, make_effective
from overlapkit.config.emit.forms import emit
from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.config.run import build_run, read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from support.late import needs

pytestmark = [pytest.mark.functional, needs("megatron.core")]

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("tests/data/bridge_configs/*.yaml")])


def built(text: str) -> Any:
    """The ConfigContainer that emitted Python builds."""
    namespace: dict[str, Any] = {}
    exec(compile(text, "emitted.py", "exec"), namespace)
    return namespace["cfg"]


def plain(value: Any) -> Any:
    """A value as a file holds it: dtypes and functions by name."""
    name = str(value)
    if name.startswith("torch."):
        return name.rpartition(".")[2]
    return getattr(value, "__name__", value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_builds_the_same_configuration(path: Path) -> None:
    settings = read_settings(read_yaml(path))
    emitted = emit(settings, "bridge")
    try:
        cfg, run = built(emitted.text), build_run(settings)
    except TypeError as error:
        if (installed_version("megatron-core") or "").startswith("0.16."):
            raise
        pytest.skip(f"a file of Megatron-Bridge 0.3.1, which runs on 0.16: {error}")
    left_out = {left.key for left in emitted.left_out}
    for section in ("model", "ddp", "optimizer"):
        made, read = getattr(cfg, section), vars(getattr(run, section))
        for field in fields(made):
            dotted = f"{section}.{field.name}"
            if field.name not in read or dotted in left_out or dotted not in settings.asked:
                continue
            wanted = read[field.name]
            wanted = wanted.rpartition(".")[2] if isinstance(wanted, str) else wanted
            assert plain(getattr(made, field.name)) == wanted, dotted
    for section in ("comm_overlap", "mixed_precision"):
        read = getattr(run, section)
        made = getattr(cfg, section)
        assert (made is None) == (read is None)
        if isinstance(made, str) or read is None:
            continue
        for field in fields(made):
            mine, theirs = getattr(made, field.name), getattr(read, field.name)
            if field.name == "tp_comm_overlap_cfg" and mine is not None:
                from megatron.bridge.training.userbuffers.settings import as_te_dict

                mine, theirs = as_te_dict(mine), as_te_dict(theirs)
            theirs = theirs.rpartition(".")[2] if isinstance(theirs, str) else theirs
            assert plain(mine) == theirs, f"{section}.{field.name}"


def test_it_runs_as_a_training_script_would() -> None:
    settings = read_settings(read_yaml(ROOT / "examples" / "llama3_70b_64xh100.yaml"))
    cfg = built(emit(settings, "bridge").text)
    cfg.apply_runtime_config(world_size=64)
    assert cfg.ddp.overlap_grad_reduce and cfg.model.overlap_p2p_comm
    assert cfg.data_parallel_size == 2


def test_userbuffers_given_by_hand_come_as_classes() -> None:
    gemm = {"method": "bulk", "num_sm": 4, "cga_size": 2, "set_sm_margin": False}
    ring = {"method": "ring_exchange", "num_sm": 1, "cga_size": 1, "set_sm_margin": False}
    ring |= {"aggregate": False, "fp8_buf": False, "atomic_gemm": False}
    comm = {
        "tp_comm_overlap": True,
        "tp_comm_overlap_cfg": {"qkv_dgrad": gemm, "fc1_fprop": ring},
    }
    settings = read_settings(Document("x", {"model": {"num_layers": 2}, "comm_overlap": comm}))
    emitted = emit(settings, "bridge")
    assert "BulkOverlapCfg(" in emitted.text and "RingExchangeOverlapCfg(" in emitted.text
    made = built(emitted.text).comm_overlap.tp_comm_overlap_cfg
    assert asdict(made)["qkv_dgrad"] == gemm and asdict(made)["fc1_fprop"] == ring


@pytest.mark.parametrize("name", ["llama3_70b_slurm", "llama3_8b_string", "mixtral_8x7b_moe"])
def test_a_megatron_lm_script_becomes_python_with_the_same_knobs(name: str) -> None:
    script = ROOT / "tests" / "data" / "megatron_lm" / f"{name}.sh"
    settings = read_megatron_lm(str(script))
    assert settings.launch is not None and settings.launch.world_size is not None
    size = settings.launch.world_size
    wanted, _ = make_effective(settings, size, AssumedSoftware())
    cfg = built(emit(settings, "bridge", world_size=size).text)
    # Transformer Engine, which some of these need, is not installed everywhere. The defaults of the
    # configurations are those of the installed Megatron-Core, and so are the rules.
    installed = AssumedSoftware(stack=installed_stack())
    update = update_runtime(cfg, size, software=installed, strict=False)
    assert not [d for d in update.decisions if d.is_finding]
    for knob in EFFECTIVE_KNOBS:
        assert knob_value(cfg, knob) == knob_value(wanted, knob), knob
