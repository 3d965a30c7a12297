"""Checkouts and installations as small as they can be: what states their versions."""

from __future__ import annotations

from pathlib import Path

PARTS = "# of its own\nMAJOR = {}\nMINOR = {}\nPATCH = {}\nPRE_RELEASE = '{}'\n"
COMPUTED = "VERSION = (MAJOR, MINOR)\n__version__ = '.'.join(map(str, VERSION))\n"


def write(file: Path, text: str) -> Path:
    """A file with this text, its folders included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def bridge(root: Path, *version: object) -> None:
    """A checkout of Megatron-Bridge of this version, without its submodule."""
    text = PARTS.format(*version, *[""][: 4 - len(version)]) + COMPUTED
    write(root / "src/megatron/bridge/package_info.py", text)


def core(root: Path, *version: object) -> None:
    """A checkout of Megatron-LM of this version."""
    text = PARTS.format(*version, *[""][: 4 - len(version)]) + COMPUTED
    write(root / "megatron/core/package_info.py", text)


def installed(site: Path, name: str, version: str) -> None:
    """A distribution in a folder of installed packages."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 9.9 in the text\n"
    write(folder / "METADATA", head)
