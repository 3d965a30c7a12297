"""`overlapkit translate`: the same run in another form, by what explain says of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from overlapkit import library
from overlapkit.config.emit.forms import FORMS
from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_configuration, read_sources
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import explain
from overlapkit.translate.read_back import read_back
from overlapkit.translate.translation import Translation, translate
from support.documents import check_document

ROOT = Path(__file__).parents[3]
CONFIGS = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("tests/data/bridge_configs/*.yaml")])
SCRIPTS = [p for p in sorted(ROOT.glob("tests/data/megatron_lm/*.sh")) if "two_" not in p.name]
EVERY = [*CONFIGS, *SCRIPTS]
ONLY_BRIDGE = {
    # --overlap-param-gather is one flag for both.
    "optimizer.overlap_param_gather",
}
"""Knobs that Megatron-LM cannot set apart from others."""
OVERWRITTEN = {"any.set-by-hand-overwritten", "precision.overwrites", "dp.bucket-size"}
"""Rules about requests that Megatron-Bridge overwrites: flags have the value in effect."""


def translated(path: Path, form: Any, **options: Any) -> Translation:
    settings = read_configuration(str(path), Reading(**options))
    return translate(settings, form, None, assume("h100", None, None, {}))


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
@pytest.mark.parametrize("form", FORMS)
def test_explain_agrees(path: Path, form: Any) -> None:
    """Of both it says the same; what it says differently is of one framework, and is named."""
    done = translated(path, form)
    same_framework = done.before.framework == done.after.framework
    if same_framework:
        lost = [d for d in done.disagreements if d.key != "model.tp_comm_bootstrap_backend"]
        assert not lost
    assumptions = assume("h100", None, None, {})
    old, new = (
        explain(each, done.world_size, assumptions, other_versions=False)
        for each in (done.before, done.after)
    )
    said = {d.key for d in done.disagreements if d.kind == "knob"}
    assert said <= ONLY_BRIDGE
    for knob, value in old.effective.items():
        # A knob of a part that the run does not have has no value that means something.
        without = {
            "model.batch_p2p_comm": old.run.model.pipeline_model_parallel_size == 1,
            "model.moe_shared_expert_overlap": not old.run.model.num_moe_experts,
            "model.wgrad_deferral_limit": not old.run.model.defer_embedding_wgrad_compute,
            "model.virtual_pipeline_model_parallel_size": value in (None, 1),
        }
        if knob not in said and not without.get(knob) and (value or new.effective[knob]):
            assert new.effective[knob] == value, knob
    for each in done.disagreements:
        comment = f"# differs: {each.sentence}"
        assert comment in done.text
        if each.kind == "finding" and not each.is_frameworks and path.stem != "mistakes":
            assert each.rule in OVERWRITTEN | {
                "pp.same-peer-hazard",
                "wrong.mxfp8-gathers-differ",
            } | {"tp.needs-sequence-parallel"}, each.sentence
    assert all(f"# not expressed: {left.key}: " in done.text for left in done.left_out)


@pytest.mark.parametrize("form", FORMS)
def test_a_translation_of_a_translation_is_the_same(form: Any) -> None:
    first = translated(ROOT / "tests/data/megatron_lm/llama3_70b_slurm.sh", "megatron-lm")
    again = translate(first.after, form, None, assume("h100", None, None, {}))
    direct = translated(ROOT / "tests/data/megatron_lm/llama3_70b_slurm.sh", form)
    assert again.after.values == direct.after.values
    assert not again.differs and not direct.differs


SCRIPT = """\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_DEBUG=WARN
torchrun --nproc-per-node 8 pretrain_gpt.py --tensor-model-parallel-size 4 --sequence-parallel \\
    --num-layers 8 --hidden-size 1024 --num-attention-heads 16 --bf16 --swiglu --seq-length 512 \\
    --use-distributed-optimizer --overlap-grad-reduce --lr 3e-4 --adam-beta2 0.95 --seed 7 \\
    --no-rope-fusion --data-path /data/a --our-own-flag 3 --log-interval $EVERY
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    return str(path)


def test_what_does_not_matter_to_overlap_goes_with_it(script: str, overlapkit: Any) -> None:
    result = overlapkit("translate", script, "--to", "yaml")
    assert result.status == 0, result.out
    data = yaml.safe_load(result.out)
    assert data["optimizer"]["lr"] == 3e-4 and data["optimizer"]["adam_beta2"] == 0.95
    assert data["rng"]["seed"] == 7
    assert data["env_vars"] == {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "NCCL_DEBUG": "WARN"}
    for flag in ("--data-path", "--our-own-flag", "--log-interval"):
        assert f"# not expressed: {flag}: " in result.out
    assert "# not expressed: torchrun: " in result.out


def test_defaults_that_differ_are_written_out(script: str, overlapkit: Any) -> None:
    model = yaml.safe_load(overlapkit("translate", script, "--to", "yaml").out)["model"]
    assert model["cross_entropy_loss_fusion"] is False
    assert model["persist_layer_norm"] is model["bias_dropout_fusion"] is True
    assert model["apply_rope_fusion"] is False
    assert model["activation_func"]["_target_"] == "torch.nn.functional.silu"


def test_defaults_of_bridge_are_flags(config: Callable[..., str], overlapkit: Any) -> None:
    name = config("model: {num_layers: 4, persist_layer_norm: true}\nddp: {}\n")
    text = overlapkit("translate", name, "--to", "megatron-lm").out
    assert "    --cross-entropy-loss-fusion\n" in text and "    --no-rope-fusion\n" in text
    assert "--no-persist-layer-norm" not in text


def test_flags_that_no_setting_holds_stay_flags(script: str, overlapkit: Any) -> None:
    text = overlapkit("translate", script, "--to", "megatron-lm").out
    assert "    --our-own-flag 3\n" in text and "    --data-path /data/a\n" in text
    assert '    --log-interval "${EVERY:?}"\n' in text
    assert text.endswith(
        'torchrun --nproc-per-node 8 --nnodes 1 pretrain_gpt.py "${MEGATRON_ARGS[@]}"\n'
    )


def test_an_old_bridge_has_no_env_vars(script: str, overlapkit: Any) -> None:
    text = overlapkit("translate", script, "--to", "yaml", "--bridge", "0.3.1").out
    assert "env_vars" not in yaml.safe_load(text)
    assert "#   export NCCL_DEBUG=WARN" in text
    (said,) = [line for line in text.splitlines() if "has no env_vars" in line]
    assert "CUDA_DEVICE_MAX_CONNECTIONS" in said and "NCCL_DEBUG" in said


def test_variables_of_a_file_are_exports(config: Callable[..., str], overlapkit: Any) -> None:
    name = config("model: {num_layers: 4}\nddp: {}\nenv_vars: {A: 1, B: true}\n")
    text = overlapkit("translate", name, "--to", "megatron-lm", "--bridge", "0.6.0").out
    assert "export A=1\n" in text and "export B=True\n" in text
    old = overlapkit("translate", name, "--to", "megatron-lm", "--bridge", "0.5.1").out
    assert "export" not in old.replace("nothing is exported", "")
    assert "# not expressed: env_vars: " in old


def test_sections_that_a_form_does_not_have_are_named(
    config: Callable[..., str], overlapkit: Any
) -> None:
    name = config(
        "model: {num_layers: 4}\nddp: {}\ndataset: {blend: x}\nlogger: {log_interval: 5}\n"
    )
    assert yaml.safe_load(overlapkit("translate", name, "--to", "yaml").out)["dataset"] == {
        "blend": "x"
    }
    script = overlapkit("translate", name, "--to", "megatron-lm").out
    assert "--log-interval 5" in script and "# not expressed: dataset.blend: " in script
    python = overlapkit("translate", name, "--to", "bridge").out
    assert "# not expressed: dataset: " in python and "# not expressed: logger: " in python


def test_the_document_and_the_library(script: str, overlapkit: Any, tmp_path: Path) -> None:
    result = overlapkit("translate", script, "--to", "hydra", "--json")
    document = result.document
    check_document(document)
    assert document["text"] == overlapkit("translate", script, "--to", "hydra").out
    assert json.loads(msgspec.json.encode(library.translate(script, to="hydra"))) == document
    out = tmp_path / "run.txt"
    written = overlapkit("translate", script, "--to", "hydra", "--out", str(out))
    assert (written.out, out.read_text()) == ("", document["text"])
    assert "not expressed: --data-path" in written.err


def test_arguments_and_overrides() -> None:
    words = ["model.num_layers=6", "--num-layers", "4", "--hidden-size", "64"]
    (settings,) = read_sources(words, command="translate", from_megatron_lm=True)
    done = translate(settings, "yaml", 8, assume(None, None, None, {}))
    assert yaml.safe_load(done.text)["model"]["num_layers"] == 6
    assert done.world_size == 8 and not done.differs


def test_a_run_that_differs_is_a_finding(config: Callable[..., str], overlapkit: Any) -> None:
    name = config(
        "model: {num_layers: 4}\nddp: {use_distributed_optimizer: true, overlap_grad_reduce: true,"
        " overlap_param_gather: true}\noptimizer: {overlap_param_gather: false}\n"
    )
    result = overlapkit("translate", name, "--to", "megatron-lm", "--bridge", "0.3.1")
    assert result.status == 1
    assert "# differs: optimizer.overlap_param_gather false -> true" in result.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a.yaml", "--to", "toml"], "--to toml"),
        (["--to", "yaml"], "none is given"),
        (["none.yaml", "--to", "yaml"], "none.yaml"),
    ],
)
def test_a_mistake_gets_one_line(arguments: list[str], named: str, overlapkit: Any) -> None:
    result = overlapkit("translate", *arguments)
    assert (result.status, result.out) == (2, "") and result.err.count("\n") == 1
    assert named in result.err


def test_python_is_read_and_not_run() -> None:
    origin = read_configuration(str(CONFIGS[0]))
    text = 'print("run")\ncfg = ConfigContainer(model=GPTModelProvider(num_layers=3), ddp={})\n'
    assert read_back(text, "bridge", origin).values["model"] == {"num_layers": 3}
