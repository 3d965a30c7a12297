"""Files that a followed script reads: those that it sources, and scripts that it starts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from overlapkit.config.gaps import Doubt
from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.grammar.parser import parse_script
from overlapkit.config.shell.grammar.syntax import Assignment, CommandList, Simple
from overlapkit.config.shell.handover import hand_on, starts_others
from overlapkit.config.shell.passed import SHELLS
from overlapkit.config.shell.processes import Processes
from overlapkit.config.shell.state import State, Variable
from overlapkit.config.shell.values import Field, fields_of, known
from overlapkit.errors import InputError

MOST_BYTES = 256 * 1024
"""Size of a script; launch scripts have a few kilobytes."""
_MOST_FILES = 60
_DEEPEST_FILE = 10
_SETS_UP = frozenset(
    {"activate", "conda.sh", ".bashrc", "bashrc", ".profile", "profile", ".bash_profile"}
    | {"modules.sh", "lmod.sh", "init.sh", "nccl-profile.sh", "setvars.sh", "vars.sh"}
    | {"set_env.sh", "set_var.sh", "hpcx-init.sh", "mpivars.sh"}
)
"""Files that set up programs and libraries, and no arguments of a job: they are not read."""
_BATCH = frozenset({"sbatch", "qsub", "bsub", "salloc"})
"""Programs that start a script whatever its name is."""
_INSTALLED = re.compile(
    r"^/(usr|etc|opt/(intel|rocm\S*|dtk\S*|conda))/"
    r"|/(\w*conda\d*|\w*mamba|miniforge\d*|spack|lmod|Modules|modules|hpcx\S*|Ascend)/"
)
"""Folders of programs and libraries: what is in them does the same."""
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
        if _sets_up(name):
            self.sets_up(node.line, words)
            return Status.ASSUMED
        file = None if word.unknown is not None else self.find_file(word.text)
        block = None if file is None else self.parsed(file)
        if file is None or block is None:
            also = ""
            if word.unknown is not None and word.unknown.name:
                also = f"{word.unknown.name}=value, or "
                name = f"the file that {word.unknown.name} names"
            remedy = f"give {also}what it sets as NAME=value"
            self.note(node.line, f"{name} is not read: {remedy}")
            self.state.unread = f"{name} may set it, which is not read"
            self.may_set_anything(node.line, name, remedy)
            return Status.ASSUMED
        state = self.state
        former = (state.source, state.arguments)
        calls = self.call_lines
        self.come_from(node.line)
        self.file_depth += 1
        state.source = file
        if len(words) > 2:
            state.pass_on(words[2:])
        try:
            return self.block(block)
        except Stop as stop:
            if stop.kind != "return":
                raise
            self.code = stop.code
            return stop.status
        finally:
            self.file_depth -= 1
            self.call_lines = calls
            state.source = former[0]
            if len(words) > 2:
                state.restore(former[1])

    def may_set_anything(
        self, line: int, what: str, remedy: str = "give what it sets as NAME=value"
    ) -> None:
        """Record that something which is not read may set or export any variable.

        It may add to arguments as well, where the script has some already.
        """
        has_flags = any(
            "--" in field.text
            for value in self.state.every().values()
            for field in fields_of(value)
        )
        self.gap(line, what, remedy, flags=None if has_flags else ())

    def sets_up(self, line: int, words: list[Field]) -> None:
        """Record a command that sets up programs and libraries, and may export variables."""
        shown = " ".join(word.text for word in words)[:60].rstrip()
        remedy = "give the variable as NAME=value where it does"
        self.gap(line, repr(shown), remedy, doubt=Doubt.SETS_UP)

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

    def text_of(self, file: str) -> str | None:
        """The text of a file; None where it is no text, or too much."""
        try:
            text = Path(file).read_bytes()[: MOST_BYTES + 1].decode().replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError):
            return None
        return None if len(text) > MOST_BYTES else text

    def parsed(self, file: str) -> CommandList | None:
        """The commands of a file; None where they cannot be read."""
        self.files += 1
        if self.files > _MOST_FILES or self.file_depth >= _DEEPEST_FILE:
            return None
        text = self.text_of(file)
        try:
            return None if text is None else parse_script(text, file)
        except InputError:
            return None

    def script_file(self, words: list[Field]) -> tuple[list[Field], str, list[Field]] | None:
        """A script that is started as a program: ``bash run.sh``, ``srun ./run.sh``.

        Returns:
            The words before it, the file and its own words; None where it is no file that is here.
        """
        names = [PurePosixPath(word.text).name for word in words]
        last = len(words) if starts_others(words[0]) else 1
        batch = names[0] in _BATCH
        for n in range(last):
            if names[n].endswith(".py") or (names[n] == "-m" and "python" in " ".join(names[:n])):
                return None
            at = n
            if names[n] in SHELLS:
                at += 1
                while at < len(words) and re.fullmatch(r"-[a-bd-z]+", words[at].text):
                    at += 1
            if at >= len(words) or words[at].unknown is not None:
                continue
            text = words[at].text
            if not text.endswith((".sh", ".bash")) and not (batch and n):
                continue
            file = self.find_file(text)
            if file is not None and (text.endswith((".sh", ".bash")) or self._is_script(file)):
                return words[:n], file, words[at + 1 :]
        return None

    def _is_script(self, file: str) -> bool:
        return (self.text_of(file) or "").startswith("#!")

    def run_file(
        self,
        node: Simple,
        words: list[Field],
        before: list[Field],
        file: str,
        arguments: list[Field],
    ) -> Status:
        """Follow a script that another one starts: it has the exported variables alone.

        Args:
            node: the command.
            words: its words.
            before: those of them that are before the script.
            file: the script.
            arguments: the words after it.
        """
        block = self.parsed(file)
        if block is None:
            self.start(node, words)
            return Status.ASSUMED
        self.file_depth += 1
        started = len(self.started)
        outer, self.outer = self.outer, (*self.outer, *before)
        calls = self.call_lines
        self.come_from(node.line)
        try:
            with self.own_process():
                self.hand_over(before)
                self.state.source, self.state.name = file, file
                self.state.pass_on(arguments)
                if before:
                    self.set_up_slurm(self.text_of(file) or "", before, node.line)
                status = self.ended(block)
        finally:
            self.file_depth -= 1
            self.outer, self.call_lines = outer, calls
        program = next((w.text for w in arguments if w.text.endswith(".py")), None)
        if program is not None and not any(
            word.text == program for each in self.started[started:] for word in each.words
        ):
            # A wrapper that starts its arguments in a way that is not followed.
            self.start(node, words)
        return status

    def hand_over(self, words: Sequence[Field]) -> None:
        """Another program has the exported variables alone, as the words before it hand them on."""
        state = self.state
        kept: dict[str, Variable] = {}
        for scope in state.scopes:
            kept |= {n: v for n, v in scope.items() if v.exported or n in state.given}
        handed = hand_on(words, state.exported(), self._beside)
        for name in handed.lost:
            if name in state.given:
                # The caller answered a question: the value is still known.
                kept[name] = replace(kept[name], exported=False)
            else:
                kept.pop(name, None)
        for name, value in handed.fields.items():
            if name not in state.given:
                kept[name] = Variable(value, exported=True)
        state.scopes, state.functions = [kept], {}
        state.lost = {**state.lost, **handed.lost}
        state.beyond = handed.unread or state.beyond

    def _beside(self, name: str) -> str | None:
        """The text of a file that is here, by its name in a script."""
        file = self.find_file(name)
        return None if file is None else self.text_of(file)


def _sets_up(name: str) -> bool:
    """Whether a file sets up programs and libraries, by its name or folder."""
    return PurePosixPath(name).name in _SETS_UP or _INSTALLED.search(name) is not None


def _is_plain_file(path: str) -> bool:
    if not path or str(Path(path).absolute()).startswith(_NO_FILES):
        return False
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES
