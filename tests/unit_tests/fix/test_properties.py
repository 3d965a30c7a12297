"""After --fix, explain finds nothing that --fix said to have fixed; whatever the configuration."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron.bridge.training.edits import Edit
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, build_run
from overlapkit.config.sources import Source
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.fix.mend import Mended, mend
from overlapkit.fix.target import Target
from overlapkit.hardware import find_gpu
from support.drawn_configurations import configurations
from support.megatron_lm_cases import FINDINGS, arguments
from support.property_tests import examples
from support.rule_cases import BROKEN

ROOT = Path(__file__).parents[3]
SLOW: dict[str, Any] = {"database": None, "suppress_health_check": list(HealthCheck)}


def judge(world_size: int, settings: Settings) -> Report:
    assumptions = Assumptions(
        *find_gpu("h100"), True, AssumedSoftware(), "assumed", {}, "nothing", True
    )
    return explain(settings, world_size, assumptions, other_versions=False)


def mended(target: Target, world_size: int = 16) -> Mended:
    return mend(target, lambda settings: judge(world_size, settings))


def check(result: Mended, file: Path, world_size: int = 16) -> None:
    """What was claimed holds for the file as it is written, and a second time changes nothing."""
    file.write_bytes(result.after.text.encode())
    source = result.after.source
    written = Source(source.kind, source.name, source.given)
    report = judge(world_size, written.read(result.after.reading))
    found = {(d.rule, d.knob) for d in report.findings}
    claimed = {(fix.decision.rule, fix.decision.knob) for fix in result.fixed}
    left = {(fix.decision.rule, fix.decision.knob) for fix in result.left}
    assert not claimed & found
    assert left == found
    assert all(fix.why and not fix.changes for fix in result.left)
    again = mended(Target(written, result.after.reading, result.after.text), world_size)
    assert not again.is_changed and not again.fixed
    if not result.fixed:
        assert not result.is_changed


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_examples(example: Path, tmp_path: Path) -> None:
    world_size = int(example.stem.rpartition("_")[2].partition("x")[0])
    file = tmp_path / "run.yaml"
    text = example.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    result = mended(Target(Source("yaml", str(file)), Reading(), text), world_size)
    check(result, file, world_size)
    # Every comment stays.
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert all(comment in result.after.text for comment in comments)


DUMPS = sorted((ROOT / "tests/data/bridge_configs").rglob("*.yaml"))
CHANGED: list[tuple[str, Any]] = [
    ("model.sequence_parallel", True),
    ("model.tensor_model_parallel_size", 4),
    ("model.virtual_pipeline_model_parallel_size", None),
    ("model.recompute_modules", ["core_attn"]),
    ("ddp.overlap_grad_reduce", False),
    ("ddp.bucket_size", 123456789),
    ("optimizer.overlap_param_gather", True),
    ("mixed_precision.grad_reduce_in_fp32", True),
    ("train.global_batch_size", 4096),
]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda path: path.stem)
def test_one_key_of_a_file_that_megatron_bridge_wrote(dump: Path, tmp_path: Path) -> None:
    """Hundreds of lines, sections in sections and objects: one value changes, and one place."""
    text = dump.read_text(encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    target = Target(Source("yaml", str(file)), Reading(), text)
    settings = target.read()
    before = settings.flat()
    for key, value in CHANGED:
        section = settings.values.get(key.partition(".")[0])
        # A recipe's name becomes a section: see below.
        if not section or BY_NAME in section:
            continue
        after, read = target.edited(settings, [Edit(key, value)])
        assert read.flat() == {**before, key: value}
        diff = difflib.unified_diff(text.splitlines(), after.text.splitlines(), n=0)
        changes = [line[0] for line in list(diff)[2:]]
        # One place; a list or an object of several lines becomes one line.
        assert changes.count("@") <= 1 and changes.count("+") <= 1 and changes.count("-") <= 12


SIZES = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 1024}


def as_yaml(case: dict[str, Any], *, flow: bool) -> str:
    """A rule's configuration as a file."""
    names = {"comm": "comm_overlap"}
    sections = {names.get(k, k): v for k, v in case.items() if isinstance(v, dict)}
    sections["model"] = {**SIZES, **sections.get("model", {})}
    return yaml.safe_dump(sections, default_flow_style=None if flow else False, sort_keys=False)


NESTED = """\
model:
  _target_: megatron.bridge.models.gpt.model_config.GPTModelConfig
  transformer:
    num_layers: 8
    hidden_size: 256
    num_attention_heads: 8
    tensor_model_parallel_size: 2
    tp_comm_overlap_cfg: null
  vocab_size: 1024
  tp_comm_overlap_cfg: null
ddp: {}
"""


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.tensor_model_parallel_size", 4, "    tensor_model_parallel_size: 4"),
        ("model.sequence_parallel", True, "    sequence_parallel: true"),
        ("model.vocab_size", 2048, "  vocab_size: 2048"),
        ("model.seq_length", 64, "  seq_length: 64"),
    ],
)
def test_a_nested_model_section(key: str, value: Any, line: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(NESTED, encoding="utf-8")
    target = Target(Source("yaml", str(file)), Reading(), NESTED)
    after, read = target.edited(target.read(), [Edit(key, value)])
    assert line in after.text.splitlines()
    assert read.flat()[key] == value


def test_a_recipe_is_written_out(tmp_path: Path) -> None:
    text = as_yaml({"ddp": {"grad_reduce_in_fp32": False}}, flow=False)
    text += "mixed_precision: bf16_with_mxfp8_mixed  # as the others\ntrain: {}\n"
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    target = Target(Source("yaml", str(file)), Reading(core="0.16.1"), text)
    settings = target.read()
    after, read = target.edited(settings, [Edit("mixed_precision.grad_reduce_in_fp32", False)])
    assert "mixed_precision:   # as the others\n  _target_: " in after.text
    old, new = build_run(settings).mixed_precision, build_run(read).mixed_precision
    assert old is not None and new is not None and old.fp8 and old.grad_reduce_in_fp32
    for field in dataclasses.fields(old):
        value = getattr(new, field.name)
        value = value.removeprefix("torch.") if isinstance(value, str) else value
        wanted = False if field.name == "grad_reduce_in_fp32" else getattr(old, field.name)
        assert value == wanted, field.name


FIXED_BY_A_FILE = [
    "pp.same-peer-hazard",
    "tp.needs-sequence-parallel",
    "dp.needs-distributed-optimizer",
    "wrong.optimizer-instances",
    "core.sequence-parallel",
    "core.p2p-modes-exclude",
    "core.bucket-ignored",
]


@pytest.mark.parametrize("flow", [False, True], ids=["block", "flow"])
@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_every_finding_of_a_yaml_file(rule: str, flow: bool, tmp_path: Path) -> None:
    case = BROKEN[rule]
    try:
        text = as_yaml(case, flow=flow)
    except yaml.YAMLError:
        pytest.skip("its configuration is no text")
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    world_size = case.get("world_size", 16)
    target = Target(Source("yaml", str(file)), Reading(core="0.16.1"), text)
    try:
        result = mended(target, world_size)
    except InputError:
        pytest.skip("explain does not read it")
    check(result, file, world_size)
    if rule in FIXED_BY_A_FILE:
        assert rule in {fix.decision.rule for fix in result.fixed}


STYLES = {
    "one line": "#!/bin/bash\ntorchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py {words}\n",
    "continued": "#!/bin/bash\nexport CUDA_DEVICE_MAX_CONNECTIONS=1\n"
    "torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py \\\n    {lines}\n",
    "array": "#!/bin/bash\nset -e\nARGS=(\n    {rows}\n)\n"
    'srun -N 2 --ntasks-per-node 8 python pretrain_gpt.py "${{ARGS[@]}}"\n',
    "text": '#!/bin/bash\r\nNODES=2\r\nALL="{words}"\r\n'
    "torchrun --nproc-per-node 8 --nnodes $NODES pretrain_gpt.py $ALL\r\n",
    "heredoc": "sbatch <<EOF\n#!/bin/bash\n#SBATCH -N 2\n#SBATCH --ntasks-per-node=8\n"
    "srun python pretrain_gpt.py \\\n  {lines}\nEOF\n",
}


def as_script(words: list[str], style: str) -> str:
    flags: list[str] = []
    for word in words:
        if word.startswith("--"):
            flags.append(word)
        else:
            flags[-1] += f" {word}"
    return STYLES[style].format(
        words=" ".join(words), lines=" \\\n    ".join(flags), rows="\n    ".join(flags)
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("rule", sorted(FINDINGS))
def test_every_finding_of_a_script(rule: str, style: str, tmp_path: Path) -> None:
    text = as_script(arguments(FINDINGS[rule][0]), style)
    file = tmp_path / "train.sh"
    file.write_bytes(text.encode())
    target = Target(Source("script", str(file)), Reading(core="0.16.1"), text)
    result = mended(target)
    check(result, file)
    # What a script says in flags can be changed there, whatever its style.
    others = {fix.decision.rule for fix in result.left if "no change of one place" in fix.why}
    assert not others


@examples(60, 2000, **SLOW)
@given(configurations, st.sampled_from([None, False]), st.sampled_from(["0.16.1", "0.18.2"]))
def test_whatever_the_configuration(data: Any, style: bool | None, core: str) -> None:
    import tempfile

    text = yaml.safe_dump(data, default_flow_style=style, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_bytes(text.encode())
        target = Target(Source("yaml", str(file)), Reading(core=core, allow_unknown=True), text)
        try:
            result = mended(target)
        except InputError:
            return
        check(result, file)
