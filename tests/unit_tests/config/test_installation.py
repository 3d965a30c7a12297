"""The versions in checkouts and installations of every shape, read as data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlapkit.config.installation import Installation, read_installation
from overlapkit.errors import InputError
from support.checkouts import bridge, core, installed, write


def found(root: Path) -> Installation:
    return read_installation(str(root))


def test_a_checkout_of_bridge_has_the_core_that_it_pins(tmp_path: Path) -> None:
    bridge(tmp_path, 0, 5, 1)
    assert (found(tmp_path).bridge, found(tmp_path).core) == ("0.5.1", None)
    core(tmp_path / "3rdparty/Megatron-LM", 0, 18, 2, "rc3")
    assert (found(tmp_path).bridge, found(tmp_path).core) == ("0.5.1", "0.18.2rc3")


def test_a_checkout_of_megatron_lm(tmp_path: Path) -> None:
    core(tmp_path, 0, 19, 0)
    assert found(tmp_path) == Installation(str(tmp_path), core="0.19.0")


@pytest.mark.parametrize(
    "inside",
    [
        ".",
        "lib/python3.12/site-packages",
        ".venv/lib/python3.11/site-packages",
        "usr/local/lib/python3.12/dist-packages",
        "Lib/site-packages",
    ],
)
def test_installed_packages_are_found(inside: str, tmp_path: Path) -> None:
    site = tmp_path / inside
    installed(site, "megatron-core", "0.18.2")
    installed(site, "megatron_bridge", "0.5.1")
    installed(site, "Transformer_Engine", "2.12.0+abc")
    installed(site, "torch", "2.9.1")
    installed(site, "torchvision", "0.24.1")
    assert found(tmp_path) == Installation(
        str(tmp_path), core="0.18.2", bridge="0.5.1", te="2.12.0+abc", torch="2.9.1"
    )


def test_the_metapackage_of_transformer_engine_wins_over_its_parts(tmp_path: Path) -> None:
    installed(tmp_path, "megatron-core", "0.18.2")
    installed(tmp_path, "transformer-engine-cu12", "2.13.0")
    assert found(tmp_path).te == "2.13.0"
    installed(tmp_path, "transformer-engine", "2.14.0")
    assert found(tmp_path).te == "2.14.0"


def test_a_checkouts_own_version_wins_over_the_packages_beside_it(tmp_path: Path) -> None:
    bridge(tmp_path, 0, 6, 0)
    site = tmp_path / ".venv/lib/python3.12/site-packages"
    installed(site, "megatron-bridge", "0.3.1")
    installed(site, "megatron-core", "0.19.0")
    installed(site, "transformer-engine", "2.14.0")
    assert (found(tmp_path).bridge, found(tmp_path).core, found(tmp_path).te) == (
        "0.6.0",
        "0.19.0",
        "2.14.0",
    )


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"open({str(marker)!r}, 'w')\n__version__ = '0.18.2'\n"
    write(tmp_path / "megatron/core/package_info.py", text)
    assert found(tmp_path).core == "0.18.2" and not marker.exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("readme.txt", "", "contains neither megatron-core nor Megatron-Bridge"),
        ("megatron/core/package_info.py", "MAJOR = open('x')", "declares no version"),
        ("megatron/core/package_info.py", "not python (", "declares no version"),
        ("megatron/core/package_info.py", "(" * 100_000, "declares no version"),
        ("megatron/core/package_info.py", "#" * 300_000, "larger than 256 KiB"),
        ("megatron/core/package_info.py", "\0", "binary"),
        ("megatron_core-1.dist-info/METADATA", "Name: megatron-core\n", "declares no version"),
        ("megatron_core-1.dist-info/other", "", "no such file"),
    ],
)
def test_what_is_none_is_one_line(file: str, text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / file, text)
    with pytest.raises(InputError, match=message) as error:
        read_installation(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_two_versions_of_a_package_are_refused(tmp_path: Path) -> None:
    installed(tmp_path / "lib/python3.11/site-packages", "megatron-core", "0.18.2")
    installed(tmp_path / "lib/python3.12/site-packages", "megatron-core", "0.19.0")
    with pytest.raises(InputError, match=r"in several versions \(0\.18\.2, 0\.19\.0\)"):
        read_installation(str(tmp_path))


@pytest.mark.parametrize("name", ["", "no/such", "x" * 5000, "a\0b"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_installation(name)


def test_a_file_and_a_pipe_are_no_folders_and_are_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_installation(str(write(tmp_path / "file", "")))
    pipe = tmp_path / "megatron/core"
    pipe.mkdir(parents=True)
    os.mkfifo(pipe / "package_info.py")
    with pytest.raises(InputError, match="not a regular file"):
        read_installation(str(tmp_path))
