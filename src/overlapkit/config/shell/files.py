"""Files that a followed script reads: those that it sources, and scripts that it starts."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.grammar.parser import parse_script
from overlapkit.config.shell.grammar.syntax import Assignment, CommandList, Simple
from overlapkit.config.shell.processes import Processes
from overlapkit.config.shell.state import State
from overlapkit.config.shell.values import Field, known
from overlapkit.errors import InputError

MOST_BYTES = 256 * 1024
"""Size of a script; launch scripts have a few kilobytes."""
_MOST_FILES = 60
_DEEPEST_FILE = 10
SHELLS = frozenset({"bash", "sh", "zsh"})
_SETS_UP = frozenset(
    {"activate", "conda.sh", ".bashrc", "bashrc", ".profile", "profile", ".bash_profile"}
    | {"modules.sh", "lmod.sh", "init.sh", "nccl-profile.sh"}
)
"""Files that set up programs and libraries, and no arguments of a job: they are not read."""
_NO_FILES = ("/proc/", "/sys/", "/dev/")


class Files(Processes):
    """Scripts in other files."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.files = 0
        self.file_depth = 0

    def do_source(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        word = words[1] if len(words) > 1 else known("", node.line)
        name = word.text or "another file"
        if PurePosixPath(name).name in _SETS_UP:
            return Status.ASSUMED
        file = None if word.unknown is not None else self.find_file(word.text)
        block = None if file is None else self.parsed(file)
        if file is None or block is None:
            self.note(node.line, f"{name} is not read: give what it sets as NAME=value")
            self.state.unread = f"{name} may set it, which is not read"
            return Status.ASSUMED
        state = self.state
        former = (state.source, state.positional, state.has_all_arguments)
        self.file_depth += 1
        state.source = file
        if len(words) > 2:
            state.positional, state.has_all_arguments = list(words[2:]), True
        try:
            return self.block(block)
        except Stop as stop:
            if stop.kind != "return":
                raise
            return stop.status
        finally:
            self.file_depth -= 1
            state.source = former[0]
            if len(words) > 2:
                state.positional, state.has_all_arguments = former[1:]

    def find_file(self, name: str) -> str | None:
        """A file that is here, by its name in a script; None where there is none to read.

        A relative name is looked for in the script's working folder and beside the script.
        """
        beside = str(Path(self.state.path).parent)
        folders = [""] if name.startswith("/") else [self.state.folder or "", beside]
        for folder in dict.fromkeys(folders):
            # Without looking at links, as a shell's cd does not either.
            path = os.path.normpath(Path(folder, name)) if name else ""
            if _is_plain_file(path):
                return path
        return None

    def parsed(self, file: str) -> CommandList | None:
        """The commands of a file; None where they cannot be read."""
        self.files += 1
        if self.files > _MOST_FILES or self.file_depth >= _DEEPEST_FILE:
            return None
        try:
            text = Path(file).read_bytes()[: MOST_BYTES + 1].decode().replace("\r\n", "\n")
            return None if len(text) > MOST_BYTES else parse_script(text, file)
        except (OSError, UnicodeDecodeError, InputError):
            return None

    def script_file(self, words: list[Field]) -> tuple[str, list[Field]] | None:
        """A script that is started as a program, ``bash run.sh`` or ``./run.sh``, with its words.

        None where it is no file that is here.
        """
        rest = list(words)
        if PurePosixPath(rest[0].text).name in SHELLS:
            rest = rest[1:]
            while rest and re.fullmatch(r"-[a-bd-z]+", rest[0].text):
                rest = rest[1:]
        if not rest or rest[0].unknown is not None or not rest[0].text.endswith((".sh", ".bash")):
            return None
        file = self.find_file(rest[0].text)
        return None if file is None else (file, rest[1:])

    def run_file(
        self, node: Simple, words: list[Field], file: str, arguments: list[Field]
    ) -> Status:
        """Follow a script that another one starts: it has the exported variables alone."""
        block = self.parsed(file)
        if block is None:
            self.start(node, words)
            return Status.ASSUMED
        self.file_depth += 1
        try:
            with self.own_process():
                self._keep_exported()
                self.state.source, self.state.positional = file, list(arguments)
                self.state.has_all_arguments = True
                return self.ended(block)
        finally:
            self.file_depth -= 1


def _is_plain_file(path: str) -> bool:
    if not path or str(Path(path).absolute()).startswith(_NO_FILES):
        return False
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES
