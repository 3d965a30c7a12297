"""What a launch script leaves unknown: no finding rests on the absence of what it may add."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
MODEL = """MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096
    --micro-batch-size 1 --global-batch-size 128 --bf16
)
"""
LAYOUT = "PARALLEL=(\n    --tensor-model-parallel-size 4 --sequence-parallel\n)\n"
LAUNCH = "torchrun --nproc-per-node 8 pretrain_gpt.py ${MODEL_ARGS[@]} ${PARALLEL[@]}"
EXPORT = f"export {QUEUES}=1\n"


@pytest.fixture
def explained(overlapkit: Any, config: Any) -> Any:
    def explain(script: str, *given: str) -> Any:
        name = config(script, "train.sh")
        options = ("--gpu", "h100", "--json")
        result = overlapkit("explain", "--from-megatron-lm", name, *options, *given)
        assert result.status in (0, 1), result.err
        assert (result.status == 1) == bool(result.document["findings"])
        text = overlapkit("explain", "--from-megatron-lm", name, "--gpu", "h100", *given).out
        return SimpleNamespace(document=result.document, text=text)

    return explain


def of(result: Any, knob: str) -> dict[str, Any]:
    (found,) = (
        d
        for d in result.document["decisions"]
        if d["knob"] == knob and (d["outcome"] == "error" or not d["certain"])
    )
    return dict(found)


MAY_EXPORT = {
    "a file at the start": (f"source ./env.sh\n{MODEL}{LAYOUT}{LAUNCH}", "./env.sh"),
    "a file in the middle": (f"{MODEL}{LAYOUT}. conf/more.sh\n{LAUNCH}", "conf/more.sh"),
    "a file in a function": (
        f"setup() {{\n  source ./env.sh\n}}\nsetup\n{MODEL}{LAYOUT}{LAUNCH}",
        "./env.sh",
    ),
    "a file that may be missing": (
        f"source ./env.sh || true\n{MODEL}{LAYOUT}{LAUNCH}",
        "./env.sh",
    ),
    "a file after a test": (f"{MODEL}{LAYOUT}[ -f e.sh ] && source e.sh\n{LAUNCH}", "a test"),
    "a file in a branch": (
        f"{MODEL}{LAYOUT}if [ -f e.sh ]; then\n  . e.sh\nfi\n{LAUNCH}",
        "the branch where '[ -f e.sh ]' holds",
    ),
    "a file in an unknown folder": (
        f"source $UNKNOWN/x.sh\n{MODEL}{LAYOUT}{LAUNCH}",
        "the file that UNKNOWN names",
    ),
    "the output of a program": (f"source <(python env.py)\n{MODEL}{LAYOUT}{LAUNCH}", "file"),
    "a text that is run": (f'eval "$(cat file)"\n{MODEL}{LAYOUT}{LAUNCH}', "eval runs"),
    "names of a file": (
        f"export $(grep -v '^#' .env | xargs)\n{MODEL}{LAYOUT}{LAUNCH}",
        "names that are not known",
    ),
    "all that a file sets": (f"set -a\nsource .env\nset +a\n{MODEL}{LAYOUT}{LAUNCH}", ".env"),
    "a branch on a command": (
        f"{MODEL}{LAYOUT}CC=$(nvidia-smi --query-gpu=compute_cap --format=csv)\n"
        f'if [ "${{CC%%.*}}" -lt 10 ]; then\n  {EXPORT}fi\n{LAUNCH}',
        "the branch where",
    ),
    "a branch on a file": (
        f"{MODEL}{LAYOUT}if [ -e /etc/hopper ]; then\n  {EXPORT}fi\n{LAUNCH}",
        "the branch where '[ -e /etc/hopper ]' holds",
    ),
    "a case": (
        f"GPU=$(hostname)\n{MODEL}{LAYOUT}case $GPU in h*)\n  {EXPORT};; esac\n{LAUNCH}",
        "a branch of its case",
    ),
}


@pytest.mark.parametrize("name", MAY_EXPORT)
def test_a_variable_that_may_be_set_is_not_missing(name: str, explained: Any) -> None:
    script, what = MAY_EXPORT[name]
    result = explained(script)
    assert result.document["findings"] == 0
    about = of(result, f"env.{QUEUES}")
    assert about["outcome"] == "note" and not about["certain"]
    assert f"may set {QUEUES}" in about["reason"] and what in about["reason"]
    assert any(what in gap["what"] for gap in result.document["not_known"])
    verdict = result.text.splitlines()[1]
    assert verdict.startswith(f"Not certain: {QUEUES}; not known: what ")
    # Given, it is known.
    known = explained(script, f"{QUEUES}=8")
    assert of(known, f"env.{QUEUES}")["outcome"] == "error"


def test_with_the_jobs_environment_it_is_missing(explained: Any, config: Any) -> None:
    nothing = config("", "job.env")
    script = f"source ./env.sh\n{MODEL}{LAYOUT}{LAUNCH}"
    assert of(explained(script, "--env-file", nothing), f"env.{QUEUES}")["outcome"] == "error"


SET_UP = {
    "conda": "source ~/miniconda3/etc/profile.d/conda.sh\nconda activate megatron\n",
    "its hook": 'eval "$(conda shell.bash hook)"\n',
    "venv": "source .venv/bin/activate\n",
    "module": "module purge\nmodule load cuda/12.4 nccl\n",
    "a shell's own": "source ~/.bashrc\n",
    "a system's": ". /etc/profile.d/modules.sh\n",
}


@pytest.mark.parametrize("name", SET_UP)
def test_what_sets_up_programs_is_named_beside_a_finding_alone(name: str, explained: Any) -> None:
    found = explained(f"{SET_UP[name]}{MODEL}{LAYOUT}{LAUNCH}")
    about = of(found, f"env.{QUEUES}")
    assert about["outcome"] == "error"
    assert "taken not to set it" in about["reason"] and "train.sh:1" in about["reason"]
    sound = explained(f"{SET_UP[name]}{EXPORT}{MODEL}{LAYOUT}{LAUNCH}")
    assert "Everything that was requested is in effect." in sound.text
    assert "not known" not in sound.text and "not to set" not in sound.text


OPEN = {
    "the script's arguments": ('"$@"', "the script's own arguments", "1="),
    "unquoted": ("$@", "the script's own arguments", "1="),
    "an array": ("${MORE_ARGS[@]}", "MORE_ARGS", "MORE_ARGS="),
    "a variable": ("$MEGATRON_ARGS", "MEGATRON_ARGS", "MEGATRON_ARGS="),
}
LACKS = {
    "sequence parallelism": (
        "--tensor-model-parallel-size 4 --tp-comm-overlap",
        "model.tp_comm_overlap",
        "--sequence-parallel",
    ),
    "the distributed optimizer": (
        "--overlap-grad-reduce --overlap-param-gather",
        "ddp.overlap_param_gather",
        "--use-distributed-optimizer",
    ),
    "stages": (
        "--num-layers-per-virtual-pipeline-stage 2",
        "model.virtual_pipeline_model_parallel_size",
        "--pipeline-model-parallel-size",
    ),
    "a size": ("--sequence-parallel", "model.sequence_parallel", "--tensor-model-parallel-size"),
}


@pytest.mark.parametrize("words", OPEN)
@pytest.mark.parametrize("lack", LACKS)
def test_a_flag_that_may_be_given_is_not_missing(lack: str, words: str, explained: Any) -> None:
    (more, what, empty), (flags, knob, missing) = OPEN[words], LACKS[lack]
    script = (
        f"{EXPORT}{MODEL}torchrun --nproc-per-node 8 pretrain_gpt.py ${{MODEL_ARGS[@]}} {flags} "
        f"{more}\n"
    )
    result = explained(script)
    about = of(result, knob)
    assert about["outcome"] == "note" and missing in about["reason"] and what in about["reason"]
    shown = "--num-layers-per-virtual-pipeline-stage" if lack == "stages" else about["flag"]
    assert f"Not certain: {shown}" in result.text
    # Where the user says that there are none, they are missing.
    stated = explained(script, empty)
    told = [d for d in stated.document["decisions"] if d["knob"] == knob]
    assert {"error", "refused"} & {d["outcome"] for d in told}
    assert not [gap for gap in stated.document["not_known"] if what in gap["what"]]


def test_a_finding_about_what_is_there_stays(explained: Any) -> None:
    job = MODEL + LAUNCH.replace("${PARALLEL[@]}", "--tensor-model-parallel-size 4")
    missing = explained(f'{job} "$@"\n')
    assert of(missing, f"env.{QUEUES}")["outcome"] == "error"
    mpi = "--tp-comm-overlap --sequence-parallel --tp-comm-bootstrap-backend mpi"
    there = explained(f"{EXPORT}source ./env.sh\n{job} {mpi} $MORE=\n", "MORE=")
    assert of(there, "model.tp_comm_bootstrap_backend")["outcome"] == "error"


def test_a_variable_that_is_there_may_be_right_in_a_layout_that_is_not_read(explained: Any) -> None:
    flags = "--use-distributed-optimizer --overlap-grad-reduce"
    script = (
        f"{EXPORT}{MODEL}torchrun --nproc-per-node 8 pretrain_gpt.py ${{MODEL_ARGS[@]}} {flags}"
    )
    knob = f"env.{QUEUES}"
    assert explained(script).document["findings"] == 1
    about = of(explained(f"{script} $PARALLEL_ARGS"), knob)
    assert "--tensor-model-parallel-size" in about["reason"]


def test_a_sound_script_says_what_is_not_known(explained: Any) -> None:
    result = explained(f'{EXPORT}{MODEL}{LAYOUT}{LAUNCH} "$@"\n')
    assert (
        "Everything that was requested and read is in effect; not known: what the script's own "
        "arguments (" in result.text
    )
    assert result.document["not_known"][0]["flags"] is None


def test_a_branch_that_cannot_matter_weakens_nothing(explained: Any) -> None:
    branch = "if [ -f wandb.key ]; then\n  export WANDB_API_KEY=$(cat wandb.key)\nfi\n"
    text = explained(f"{EXPORT}{branch}{MODEL}{LAYOUT}{LAUNCH}").text
    assert "Everything that was requested is in effect." in text


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ('[ "$USE_OVERLAP" = 1 ]', "USE_OVERLAP"),
        ('[[ -n "${GPU_KIND}" && $GPU_KIND != a100 ]]', "GPU_KIND"),
        ("[ ${FAST:-0} -eq 1 ]", "FAST"),
    ],
)
def test_a_condition_on_what_nothing_sets_is_named(
    condition: str, names: str, explained: Any
) -> None:
    branch = f"if {condition}; then\n  PARALLEL+=(--tp-comm-overlap)\nfi\n"
    result = explained(f"{EXPORT}{MODEL}{LAYOUT}{branch}{LAUNCH}")
    (note,) = (n for n in result.document["notes"] if "is not set in the script, so" in n)
    assert note.startswith(result.document["config"] + ":9: ") and f"{names}=value" in note
    # Bash decides it in the same way, so that the verdict stays.
    assert "Everything that was requested is in effect." in result.text


def test_a_finding_is_weakened_by_a_condition_on_what_nothing_sets(explained: Any) -> None:
    layout = LAYOUT.replace("--sequence-parallel", "--tp-comm-overlap")
    branch = 'if [ "$SP" = 1 ]; then\n  PARALLEL+=(--sequence-parallel)\nfi\n'
    script = f"{EXPORT}{MODEL}{layout}{branch}{LAUNCH}"
    about = of(explained(script), "model.tp_comm_overlap")
    assert not about["certain"] and about["remedy"].startswith("give SP=value")
    assert of(explained(script, "SP=0"), "model.tp_comm_overlap")["outcome"] == "error"
    assert explained(script, "SP=1").document["findings"] == 0


def test_a_file_that_starts_no_job_lacks_nothing(explained: Any) -> None:
    script = f"{MODEL}{LAYOUT}MORE='--overlap-grad-reduce --overlap-param-gather'\n"
    result = explained(script, "--world-size", "8")
    assert result.document["findings"] == 0
    assert any("MODEL_ARGS, PARALLEL, MORE are combined" in n for n in result.document["notes"])
    assert "the script that starts the job" in result.text.splitlines()[1]
    assert not of(result, "ddp.overlap_param_gather")["certain"]
    exported = explained(f"{EXPORT}{script}", "--world-size", "8").document
    assert exported["job_env"][QUEUES]["value"] == "1"


def test_a_script_that_is_not_here_is_named(overlapkit: Any, config: Any) -> None:
    name = config(f"{EXPORT}srun bash launch_inner.sh\n", "train.sh")
    result = overlapkit("explain", "--from-megatron-lm", name)
    assert result.status == 2 and "launch_inner.sh, which is not here" in result.err


def test_a_test_for_a_file_that_is_here_holds(explained: Any, config: Any) -> None:
    config(f"{EXPORT}", "here.sh")
    script = f'D=$(dirname "$0")\n[ -f $D/here.sh ] && source $D/here.sh\n{MODEL}{LAYOUT}{LAUNCH}'
    result = explained(script)
    assert result.document["job_env"][QUEUES]["value"] == "1" and not result.document["not_known"]


def test_doctor_finds_nothing_missing_that_may_be_given(doctor: Any, config: Any) -> None:
    name = config(f'{EXPORT}{MODEL}{LAYOUT}{LAUNCH} "$@"\n', "train.sh")
    options = ("--from-megatron-lm", name, "--gpu", "h100")
    told = doctor(*options)
    assert told.status == 0 and "in what was read; not known: what the script's own" in told.out
    assert "note: not certain, since flags are not known: gradients of 2 replicas" in told.out
    stated = doctor(*options, "1=")
    assert stated.status == 1 and "off.overlap_grad_reduce" in stated.out


def test_doctor_names_what_is_not_certain(doctor: Any, config: Any) -> None:
    name = config(f"source ./env.sh\n{MODEL}{LAYOUT}{LAUNCH}", "train.sh")
    told = doctor("--from-megatron-lm", name, "--gpu", "h100")
    assert f"note: {QUEUES}: " in told.out and "./env.sh" in told.out


def test_an_audit_says_what_is_not_known(overlapkit: Any, config: Any, tmp_path: Any) -> None:
    config(f"source ./env.sh\n{MODEL}{LAYOUT}{LAUNCH}", "train.sh")
    result = overlapkit("audit", str(tmp_path), "--gpu", "h100")
    assert result.status == 0 and f"Not certain: {QUEUES}; not known: what ./env.sh" in result.out


def test_what_is_not_certain_is_not_fixed(overlapkit: Any, config: Any) -> None:
    name = config(f"source ./env.sh\n{MODEL}{LAYOUT}{LAUNCH}", "train.sh")
    result = overlapkit("explain", "--diff", "--from-megatron-lm", name, "--gpu", "h100")
    assert result.status == 0
    assert "nothing to fix in what was read; not known: what ./env.sh" in result.out
