"""Output files: regular files only, never an input, complete or not at all."""

from __future__ import annotations

import gzip
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.output.files import Output, OutputFolder, outputs
from support import tiny_trace as tiny

CONFIG = """\
model: {num_layers: 8, hidden_size: 1024, num_attention_heads: 8, seq_length: 4096,
  vocab_size: 32000}
train: {micro_batch_size: 1, global_batch_size: 64}
"""
OLD = b"what was here before"


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device files need privileges")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The name of a socket is limited to about 100 bytes, which a test's folder exceeds.
        here = Path.cwd()
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(here)


def _link_out(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    outside.write_bytes(OLD)
    path.symlink_to(outside)


def _link_to_device(path: Path) -> None:
    _device(path.with_name("device"))
    path.symlink_to("device")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "is a folder"),
    "a FIFO": (os.mkfifo, "is a FIFO"),
    "a device": (_device, "is a device"),
    "a socket": (_socket, "is a socket"),
    "a link out of the folder": (_link_out, "symbolic link"),
    "a link to a device": (_link_to_device, "is a device"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic link"),
}


def _state(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {str(path): (s.st_ino, s.st_mode, s.st_size) for path, s in found.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.parametrize(("make", "told"), KINDS.values(), ids=KINDS)
def test_only_regular_files_are_written(
    make: Callable[[Path], object], told: str, folder: Path
) -> None:
    target = folder / "out.html"
    make(target)
    before = _state(folder.parent)
    with pytest.raises(InputError, match=told) as refused:
        outputs({"--html": str(target)}, [])
    assert f"--html {target}: " in str(refused.value)
    with pytest.raises(InputError, match=told):
        Output("--html", str(target)).write("text")
    assert _state(folder.parent) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "not a file name"),
        ("new/", "not a file name"),
        ("missing/out.html", "does not exist"),
        ("file/out.html", "does not exist"),
        ("x" * 256, "too long"),
        ("a\0b", "not a file name"),
        ("\ud800", "not a file name"),
    ],
    ids=ascii,
)
def test_a_name_that_cannot_be_written(
    name: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("file").touch()
    with pytest.raises(InputError, match=told):
        outputs({"--html": name}, [])
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="cannot be written"):
        outputs({"--html": "/proc/out.html"}, [])


def test_a_file_that_may_not_be_written() -> None:
    # Not in pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "locked").mkdir(mode=0o555)
        (folder / "file").touch(mode=0o444)
        # Root may write everywhere, so be nobody for as long as that takes.
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match="Permission denied"):
                outputs({"--html": str(folder / "locked/out.html")}, [])
            with pytest.raises(InputError, match="write-protected"):
                outputs({"--html": str(folder / "file")}, [])
            outputs({"--html": str(folder / "new")}, [])
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("how", ["itself", "another path", "hard link", "link to it", "its target"])
def test_an_input_is_never_an_output(how: str, folder: Path) -> None:
    given, target = folder / "in.yaml", folder / "out.html"
    given.write_bytes(OLD)
    if how == "itself":
        target = given
    elif how == "another path":
        target = folder / ".." / "folder" / "in.yaml"
    elif how == "hard link":
        os.link(given, target)
    elif how == "link to it":
        target.symlink_to(given.name)
    else:
        target.write_bytes(OLD)
        given.unlink()
        given.symlink_to(target.name)
    with pytest.raises(InputError, match="is also an input"):
        outputs({"--html": str(target)}, ["missing", "a\0b", str(given)])
    assert given.read_bytes() == OLD


@pytest.mark.parametrize("how", ["the same name", "another path", "hard link", "link to it"])
def test_two_outputs_are_two_files(how: str, folder: Path) -> None:
    first, second = folder / "a", folder / "b"
    if how == "the same name":
        second = first
    elif how == "another path":
        second = folder / ".." / "folder" / "a"
    elif how == "hard link":
        first.touch()
        os.link(first, second)
    else:
        second.symlink_to("a")
    with pytest.raises(InputError, match=r"--annotate .*the same file as --html"):
        outputs({"--html": str(first), "--annotate": str(second)}, [])


def test_an_option_that_was_not_given_is_none(folder: Path) -> None:
    checked = outputs({"--html": None, "--annotate": str(folder / "a")}, [])
    assert checked == [None, Output("--annotate", str(folder / "a"))]


def test_a_new_file_has_the_usual_mode(folder: Path, umask: int) -> None:
    Output("--html", str(folder / "out")).write("text")
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o666])
def test_a_replaced_file_keeps_its_mode(mode: int, folder: Path, umask: int) -> None:
    target = folder / "out"
    target.write_bytes(OLD)
    target.chmod(mode)
    with Output("--html", str(target)).stream() as stream:
        (aside,) = [path for path in folder.iterdir() if path != target]
        assert stat.S_IMODE(aside.stat().st_mode) & ~mode == 0
        stream.write(b"new")
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", mode)


def test_a_link_within_the_folder_stays_a_link(folder: Path) -> None:
    (folder / "latest").symlink_to("page.html")
    output = Output("--html", str(folder / "latest"))
    for text in ("first", "second"):
        output.write(text)
        assert (folder / "latest").is_symlink()
        assert (folder / "page.html").read_text() == text


def test_a_folder_may_be_reached_through_a_link(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    Output("--html", str(folder.parent / "link" / "out")).write("text")
    assert (folder / "out").read_text() == "text"


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError(28, "full")]
)
def test_what_fails_leaves_the_old_file_and_no_other(error: object, folder: Path) -> None:
    target = folder / "out"
    target.write_bytes(OLD)
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected), Output("--html", str(target)).stream() as stream:  # type: ignore[call-overload]
        stream.write(b"half of it")
        raise error  # type: ignore[misc]
    assert target.read_bytes() == OLD
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_a_file_that_becomes_something_else_meanwhile_is_not_replaced(folder: Path) -> None:
    target = folder / "out"
    with pytest.raises(InputError, match="FIFO"), Output("--html", str(target)).stream() as stream:
        stream.write(b"text")
        os.mkfifo(target)
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert stat.S_ISFIFO(target.stat().st_mode)


def test_a_name_that_ends_in_gz_is_compressed(folder: Path) -> None:
    Output("--annotate", str(folder / "out.gz")).write("text")
    assert gzip.decompress((folder / "out.gz").read_bytes()) == b"text"


@pytest.fixture
def given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Inputs by name, for commands that fail if they begin to work."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("overlapkit.plan.command.make_plan", work)
    monkeypatch.setattr("overlapkit.trace.command.read_ahead", work)
    monkeypatch.setattr("overlapkit.trace.compare.command.analyse_each", work)
    run = folder / "run.yaml"
    run.write_text(CONFIG)
    traces = folder / "traces"
    traces.mkdir()
    for rank in (0, 1):
        tiny.write(traces / f"rank{rank}.json", [tiny.kernel(tiny.GEMM, 1000, 10)])
    return {"yaml": str(run), "traces": str(traces), "trace": str(traces / "rank0.json")}


PLAN = ("plan", "{yaml}", "--gpu", "h100", "--world-size", "8")
TRACE = ("trace", "{trace}", "--config", "{yaml}")
COMPARE = ("compare", "{traces}", "{trace}", "--config-base", "{yaml}", "--config-new", "{yaml}")
COMMANDS = {
    "plan onto its configuration": (*PLAN, "--html", "{yaml}"),
    "plan onto a FIFO": (*PLAN, "--html", "{fifo}"),
    "trace onto the trace": (*TRACE, "--html", "{trace}"),
    "trace onto a trace of the folder": ("trace", "{traces}", "--html", "{trace}"),
    "trace onto its configuration": (*TRACE, "--html", "{yaml}"),
    "trace onto the trace, annotated": (*TRACE, "--annotate", "{trace}"),
    "trace onto a FIFO": (*TRACE, "--annotate", "{fifo}"),
    "trace, both onto one file": (*TRACE, "--html", "{new}", "--annotate", "{new}"),
    "trace into the folder of traces": ("trace", "{traces}", "--html", "{traces}/rank2.json"),
    "compare onto a trace": (*COMPARE, "--html", "{trace}"),
    "compare onto a configuration": (*COMPARE, "--html", "{yaml}"),
    "compare onto a FIFO": (*COMPARE, "--html", "{fifo}"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_refuse_before_they_work(
    command: tuple[str, ...], given: dict[str, str], folder: Path, overlapkit
) -> None:
    os.mkfifo(folder / "fifo")
    names = {**given, "fifo": str(folder / "fifo"), "new": str(folder / "new")}
    words = [word.format(**names) for word in command]
    before = _state(folder)
    result = overlapkit(*words)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    option = "--annotate" if "--annotate" in command else "--html"
    assert f"{option} {words[-1]}: " in result.err
    assert _state(folder) == before


def test_plan_refuses_the_launch_script_it_reads(given, folder: Path, overlapkit) -> None:
    script = folder / "train.sh"
    script.write_text("torchrun pretrain_gpt.py --num-layers 2\n")
    for name in (str(script), f"{script}:1"):
        result = overlapkit(
            "plan", "--from-megatron-lm", name, "--gpu", "h100", "--html", str(script)
        )
        assert result.status == 2 and "is also an input" in result.err
    assert script.read_text().startswith("torchrun")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (Path.touch, "is not a folder"),
    "a FIFO": (os.mkfifo, "is not a folder"),
    "a link to an empty folder": (lambda path: path.symlink_to("empty"), "symbolic link"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "symbolic link"),
    "a folder with a file": (lambda path: (path.mkdir(), (path / "a").touch()), "is not empty"),
    "the current folder": (lambda path: (path.mkdir(), os.chdir(path)), "the current folder"),
}


@pytest.mark.parametrize(("make", "told"), FOLDERS.values(), ids=FOLDERS)
def test_only_a_new_or_empty_folder_is_filled(
    make: Callable[[Path], object], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    make(folder / "out")
    before = _state(folder)
    output = OutputFolder("--out", str(folder / "out"))
    with pytest.raises(InputError, match=told):
        output.check()
    with pytest.raises(InputError, match=told), output.filled():
        pass
    assert _state(folder) == before


@pytest.mark.parametrize("name", ["", "missing/out", "file/out", "x" * 256, "a\0b", "\ud800"])
def test_a_folder_that_cannot_be_created(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("file").touch()
    with pytest.raises(InputError, match="--out"):
        OutputFolder("--out", name).check()
    with pytest.raises(InputError, match="cannot be written"):
        OutputFolder("--out", "/proc/out").check()


@pytest.mark.parametrize("mode", [None, 0o700, 0o775])
def test_a_folder_is_filled_completely(mode: int | None, folder: Path, umask: int) -> None:
    target = folder / "out"
    if mode is not None:
        target.mkdir()
        target.chmod(mode)
    with OutputFolder("--out", str(target)).filled() as aside:
        (aside / "a").write_text("text")
        assert not target.exists() or not list(target.iterdir())
    assert [path.name for path in folder.rglob("*")] == ["out", "a"]
    assert stat.S_IMODE(target.stat().st_mode) == (0o777 & ~umask if mode is None else mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "full")])
def test_a_folder_that_fails_is_not_begun(error: object, folder: Path) -> None:
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected), OutputFolder("--out", str(folder / "out")).filled() as aside:  # type: ignore[call-overload]
        (aside / "a").write_text("text")
        raise error  # type: ignore[misc]
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_filled_by_others_meanwhile_stays(folder: Path) -> None:
    target = folder / "out"
    output = OutputFolder("--out", str(target))
    with pytest.raises(InputError, match="cannot be written"), output.filled() as aside:
        (aside / "a").touch()
        target.mkdir()
        (target / "theirs").touch()
    assert [path.name for path in folder.rglob("*")] == ["out", "theirs"]
