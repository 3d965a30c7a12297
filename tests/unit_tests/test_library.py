"""The library: what `import overlapkit` gives a program."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import itertools
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest

import overlapkit
from overlapkit import InputError, library
from support.documents import check_document

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT / "tests" / "data"
SCRIPT = DATA / "megatron_lm" / "llama3_8b_string.sh"
SLOW = DATA / "traces" / "megatron-no-overlap.rank0.json.gz"
FAST = DATA / "traces" / "megatron-overlap.rank0.json.gz"
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
FUNCTIONS = ("compare", "explain", "explain_versions", "plan", "trace", "translate")
PACKAGES = ("explain", "plan", "trace", "translate")

RUN: dict[str, Any] = {
    "model": {"tensor_model_parallel_size": 4, "sequence_parallel": True, "num_layers": 4},
    "ddp": {"use_distributed_optimizer": True},
    "comm_overlap": {"tp_comm_overlap": True},
}


def encoded(document: Any) -> Any:
    check_document(msgspec.to_builtins(document))
    return msgspec.json.decode(msgspec.json.encode(document))


@contextlib.contextmanager
def nothing_written() -> Iterator[None]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
    assert (out.getvalue(), err.getvalue()) == ("", "")


class TestWhatTheCommandsPrint:
    @pytest.fixture(autouse=True)
    def _in_the_checkout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)

    def test_explain(self, overlapkit: Callable[..., Any], tmp_path: Path) -> None:
        path = EXAMPLES / "pitfalls_16xh100.yaml"
        environment = tmp_path / "job.env"
        environment.write_text("CUDA_DEVICE_MAX_CONNECTIONS=8\n")
        options = ["--world-size", "16", "--gpu", "b200", "--te", "2.1"]
        printed = overlapkit(
            "explain",
            str(path),
            "model.tensor_model_parallel_size=4",
            *options,
            "--env-file",
            str(environment),
            "--json",
        )
        with nothing_written():
            document = library.explain(
                path,
                overrides=["model.tensor_model_parallel_size=4"],
                world_size=16,
                gpu="b200",
                te="2.1",
                env=environment,
            )
        assert encoded(document) == printed.document

    def test_explain_of_a_launch_script(self, overlapkit: Callable[..., Any]) -> None:
        printed = overlapkit("explain", "--from-megatron-lm", str(SCRIPT), "--json")
        document = library.explain(str(SCRIPT), from_megatron_lm=True)
        assert encoded(document) == printed.document

    def test_explain_of_megatron_lms_arguments(self, overlapkit: Callable[..., Any]) -> None:
        arguments = ["--tensor-model-parallel-size", "2", "--num-layers", "4"]
        options = ["--from-megatron-lm", "--world-size", "8", "--json"]
        printed = overlapkit("explain", *options, "--", "model.seq_length=128", *arguments)
        document = library.explain(
            arguments,
            from_megatron_lm=True,
            world_size=8,
            overrides={"model.seq_length": 128},
        )
        assert encoded(document) == printed.document

    def test_plan(self, overlapkit: Callable[..., Any]) -> None:
        given = ["--model", "llama3_8b", "--gpu", "h100", "--world-size", "64", "--nodes", "8"]
        more = ["--network", "400", "--sweep", "tp,pp", "--show-work", "--json"]
        printed = overlapkit("plan", *given, *more, "mbs=1")
        with nothing_written():
            document = library.plan(
                model="llama3_8b",
                gpu="h100",
                world_size=64,
                nodes=8,
                network=400,
                sweep=("tp", "pp"),
                show_work=True,
                overrides={"mbs": 1},
            )
        assert encoded(document) == printed.document

    def test_plan_of_a_file_and_of_a_script(self, overlapkit: Callable[..., Any]) -> None:
        path = EXAMPLES / "gpt_1b_8xh100.yaml"
        printed = overlapkit("plan", str(path), "--gpu", "h100", "--world-size", "8", "--json")
        assert encoded(library.plan(path, gpu="h100", world_size=8)) == printed.document
        options = ["--from-megatron-lm", str(SCRIPT), "cp=4", "--gpu", "h100", "--json"]
        printed = overlapkit("plan", *options)
        document = library.plan(SCRIPT, gpu="h100", from_megatron_lm=True, overrides={"cp": 4})
        assert encoded(document) == printed.document

    def test_trace(self, overlapkit: Callable[..., Any]) -> None:
        files = sorted((DATA / "traces").glob("megatron-pipeline.rank*"))
        printed = overlapkit("trace", *map(str, files), "--steps", "1:3", "--json")
        with nothing_written():
            document = library.trace(files, steps="1:3")
        assert encoded(document) == printed.document
        one = overlapkit("trace", str(files[0]), "--json").document
        assert encoded(library.trace(files[0])) == encoded(library.trace(str(files[0]))) == one

    def test_compare(self, overlapkit: Callable[..., Any], config: Callable[..., str]) -> None:
        base = config("model: {}\nddp: {overlap_grad_reduce: true}\n", "a.yaml")
        new = {"model": {}, "ddp": {"overlap_grad_reduce": False}}
        name = config("model: {}\nddp: {overlap_grad_reduce: false}\n", "b.yaml")
        options = ["--config-base", base, "--config-new", name, "--json"]
        printed = overlapkit("compare", str(FAST), str(SLOW), *options)
        with nothing_written():
            document = library.compare(FAST, SLOW, config_base=base, config_new=new)
        assert document.decisions and encoded(document) == printed.document


class TestMappings:
    def test_a_mapping_is_what_the_file_is(self, config: Callable[..., str]) -> None:
        path = config(msgspec.json.encode(RUN).decode())
        file, mapping = (encoded(library.explain(c, world_size=8, env={})) for c in (path, RUN))
        assert any(d["where"] for d in file["decisions"])
        for decision in file["decisions"]:
            # A mapping has no lines.
            decision["where"] = None
        assert mapping | {"config": path} == file

    def test_other_types_of_the_same_values(self) -> None:
        class Size(IntEnum):
            FOUR = 4

        class Backend(str, Enum):
            NCCL = "nccl"

        overrides = {
            "model.tensor_model_parallel_size": Size.FOUR,
            "model.num_layers": np.int64(4),
            "comm_overlap.tp_comm_bootstrap_backend": Backend.NCCL,
        }
        plain = {**overrides, "model.num_layers": 4, "model.tensor_model_parallel_size": 4}
        plain["comm_overlap.tp_comm_bootstrap_backend"] = "nccl"
        sections = MappingProxyType({key: MappingProxyType(value) for key, value in RUN.items()})
        assert library.explain(sections, overrides=overrides, world_size=8) == library.explain(
            RUN, overrides=plain, world_size=8
        )

    def test_overrides_in_every_form(self) -> None:
        key = "model.tensor_model_parallel_size"
        forms: list[Any] = [{key: 2}, [f"{key}=2"], f"{key}=2", (text for text in [f"{key}=2"])]
        documents = [library.explain(RUN, overrides=form, world_size=8) for form in forms]
        assert {d.effective[key] for d in documents} == {2}
        text = library.explain(RUN, overrides={"mixed_precision": "bf16_mixed"}, world_size=8)
        nothing = library.explain(RUN, overrides={"comm_overlap": None}, world_size=8)
        assert text.effective["ddp.grad_reduce_in_fp32"] is True
        assert nothing.effective["model.tp_comm_overlap"] is False

    def test_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
        here = library.explain(RUN, world_size=8)
        given = library.explain(RUN, world_size=8, env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
        assert (here.environment, given.environment) == (
            "the current environment",
            "the given environment",
        )
        assert here.findings == 1 and given.findings == 0

    def test_neither_is_changed(self) -> None:
        sections = {name: MappingProxyType(content) for name, content in RUN.items()}
        before = {name: dict(content) for name, content in sections.items()}
        library.explain(sections, overrides={"model.num_layers": 8}, world_size=8)
        assert sections == before


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: library.explain("none.yaml", world_size=8), "none.yaml: no such file"),
            (lambda: library.explain(RUN), "--world-size N is missing"),
            (lambda: library.explain(RUN, world_size=0), "must be from 1"),
            (lambda: library.explain(RUN, world_size=7), "7"),
            (lambda: library.explain(RUN, world_size=8, gpu="z9"), "unknown GPU"),
            (lambda: library.explain(RUN, world_size=8, te="new"), "--te new"),
            (lambda: library.explain(RUN, world_size=8, env="none.env"), "no such file"),
            (lambda: library.explain(RUN, world_size=8, from_megatron_lm=True), "launch script"),
            (lambda: library.explain([], world_size=8, from_megatron_lm=True), "launch script"),
            (lambda: library.explain({"model": {1: 2}}, world_size=8), "key 1"),
            (lambda: library.explain({"model": {"num_layers": 2**64}}, world_size=8), "64 bits"),
            (lambda: library.explain({"model": {"bf16": object()}}, world_size=8), "a object is"),
            (lambda: library.explain(RUN, overrides={"x.y": 1}, world_size=8), "unknown section"),
            (lambda: library.explain(RUN, overrides=["b:model.bf16=1"], world_size=8), "b:model"),
            (lambda: library.plan(gpu="h100", world_size=8), "none is given"),
            (lambda: library.plan(RUN, gpu="h100", model="llama3_8b"), "llama3_8b"),
            (lambda: library.plan(RUN, gpu="z9", world_size=8), "unknown GPU"),
            (lambda: library.plan(model="llama3_8b", gpu="h100", sweep="zz"), "unknown dimension"),
            (lambda: library.trace([]), "files is empty"),
            (lambda: library.trace("none.json"), "no such file"),
            (lambda: library.trace(SLOW, steps=99), "--steps 99"),
            (lambda: library.trace(SLOW, rank_from="both"), "rank_from='both'"),  # type: ignore
            (lambda: library.compare(SLOW, "none.json"), "no such file"),
            (lambda: library.compare(SLOW, FAST, config_base=RUN), "--config-new is missing"),
        ],
    )
    def test_one_line(self, call: Callable[[], Any], message: str) -> None:
        with nothing_written(), pytest.raises(InputError) as raised:
            call()
        assert message in str(raised.value) and "\n" not in str(raised.value)

    def test_a_mapping_that_contains_itself(self) -> None:
        endless: dict[str, Any] = {"model": {}}
        endless["model"]["x"] = endless
        with pytest.raises(InputError, match="levels deep"):
            library.explain(endless, world_size=8)


class TestNames:
    """`overlapkit.explain` is callable, and a package, in every order of imports."""

    @pytest.mark.parametrize(
        "imports",
        [
            *(
                "\n".join(order)
                for order in itertools.permutations(
                    (
                        "import overlapkit",
                        "import overlapkit.explain.report",
                        "from overlapkit import explain as called; called",
                    )
                )
            ),
            "from overlapkit import *",
            "import overlapkit.library",
            "import overlapkit.trace.compare.command\nimport overlapkit.plan.document",
            "import importlib; importlib.import_module('overlapkit.trace.read.kineto_events')",
            "import overlapkit.cli",
        ],
    )
    def test_every_order(self, imports: str) -> None:
        code = (
            f"{imports}\n"
            "import sys, overlapkit\n"
            "from overlapkit import compare, explain, plan, trace\n"
            "import overlapkit.explain.report as report\n"
            "import overlapkit.trace.read.byte_source as inner\n"
            "import overlapkit.plan\n"
            "assert report is sys.modules['overlapkit.explain.report']\n"
            "assert inner is sys.modules['overlapkit.trace.read.byte_source']\n"
            "assert overlapkit.explain is explain is sys.modules['overlapkit.explain']\n"
            "assert overlapkit.plan is plan and overlapkit.trace is trace\n"
            "assert overlapkit.compare is compare\n"
            "assert all(map(callable, (compare, explain, plan, trace)))\n"
            "document = explain({'model': {}}, world_size=1)\n"
            "assert document.schema == 'overlapkit/explain/v1'\n"
            "heavy = [m for m in ('torch', 'megatron.core', 'transformer_engine') "
            "if m in sys.modules]\n"
            "print(heavy)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")

    def test_importing_the_package_alone_is_light(self) -> None:
        code = (
            "import sys; before = set(sys.modules); import overlapkit; "
            "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {"overlapkit"}

    def test_all_names(self) -> None:
        assert set(overlapkit.__all__) == {*FUNCTIONS, "InputError", "__version__"}
        assert set(overlapkit.__all__) <= set(dir(overlapkit))
        assert set(library.__all__) == set(FUNCTIONS)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = overlapkit.nothing  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_signature_and_help(self, name: str) -> None:
        function = getattr(library, name)
        called = getattr(overlapkit, name)
        assert inspect.signature(called) == inspect.signature(function)
        shown = pydoc.plain(pydoc.render_doc(called))
        for parameter in inspect.signature(function).parameters:
            assert parameter in shown
        assert "InputError" in shown
        assert inspect.getdoc(function) is not None

    @pytest.mark.parametrize("name", PACKAGES)
    def test_a_package_stays_a_package(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        package = importlib.import_module(f"overlapkit.{name}")
        assert inspect.ismodule(package) and package.__path__
        assert importlib.reload(package) is package and callable(package)
        monkeypatch.setattr(f"overlapkit.{name}.document.Struct", None)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_every_option_of_the_command_is_a_keyword(self, name: str) -> None:
        from overlapkit.cli import cli

        # What a command writes, and where, is not the library's; some have other names or forms.
        elsewhere = {"arguments", "as_json", "html", "annotate", "form", "swept", "world_sizes",
                     "env_file", "buckets", "brief", "fix", "out", "rank"}  # fmt: skip
        # Several versions are the same command's, and are no remedies.
        elsewhere |= {"diff"} if name == "explain_versions" else set()
        command = cli.commands[name.partition("_")[0]]
        options = {p.name for p in command.params if p.expose_value} - elsewhere
        assert options <= set(inspect.signature(getattr(library, name)).parameters)


def test_the_page_shows_what_its_examples_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "text"] * (len(blocks) // 2)
    names: dict[str, Any] = {}
    for (_, code), (_, expected) in zip(blocks[::2], blocks[1::2], strict=True):
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            exec(compile(code, "docs/library.md", "exec"), names)
        assert written.getvalue() == expected


def test_several_files_in_a_program_with_threads() -> None:
    import threading

    files = sorted((DATA / "traces").glob("megatron-pipeline.rank*"))
    alone = library.trace(files)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert library.trace(files) == alone
    finally:
        stop.set()
        thread.join()
