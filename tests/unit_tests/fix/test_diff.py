"""A diff that git apply and patch take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from overlapkit.fix.diff import unified_diff

TEXTS = [
    ("a: 1\nb: 2\n", "a: 1\nb: 3\n"),
    ("a: 1\nb: 2", "a: 1\nb: 3"),
    ("a: 1", "a: 1\nb: 3"),
    ("a: 1\r\nb: 2\r\n", "a: 1\r\nb: 3\r\n"),
    ("a: '\x0c\u2028'\nb: 2\n", "a: '\x0c\u2028'\nb: 3\n"),
    ("\ufeffa: 1\n", "\ufeffa: 2\n"),
    ("a: 1\n", "a: 1\n" + "b: 2\n" * 9),
]
COMMANDS = [["git", "apply"], ["patch", "-p1", "--binary", "--quiet"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize(("before", "after"), TEXTS)
@pytest.mark.parametrize("name", ["run.yaml", "two words.yaml", "below/Ω.sh"])
def test_it_is_applied(
    command: list[str],
    before: str,
    after: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    monkeypatch.chdir(tmp_path)
    file = Path(name)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(before.encode())
    # What the command says behind the diff does no harm.
    text = unified_diff(name, before, after) + "\nrun.yaml: 1 finding would be fixed\nfix    ddp\n"
    subprocess.run(command, input=text.encode(), check=True, capture_output=True)
    assert file.read_bytes() == after.encode()


def test_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def head(name: str) -> list[str]:
        return unified_diff(name, "a\n", "b\n").splitlines()[:2]

    assert head("./x/../run.yaml") == ["--- a/run.yaml", "+++ b/run.yaml"]
    assert head(str(tmp_path / "run.yaml")) == ["--- a/run.yaml", "+++ b/run.yaml"]
    assert head("/elsewhere/run.yaml") == ["--- a/elsewhere/run.yaml", "+++ b/elsewhere/run.yaml"]
    assert head('q"u.yaml') == ['--- "a/q\\042u.yaml"', '+++ "b/q\\042u.yaml"']


def test_without_a_change_it_is_empty() -> None:
    assert unified_diff("run.yaml", "a\n", "a\n") == ""
