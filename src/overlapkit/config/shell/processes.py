"""Processes of a followed script: subshells, substitutions, files it reads, programs it starts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from overlapkit.config.shell.builtins import Builtins, Status, Stop, with_end
from overlapkit.config.shell.parser import parse_script
from overlapkit.config.shell.programs import echoed, printed
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.shell.state import State, Variable
from overlapkit.config.shell.syntax import Assignment, Command, CommandList, Simple
from overlapkit.config.shell.values import (
    Field,
    Piece,
    Unknown,
    known,
    not_known,
    part_of,
    without_start,
)
from overlapkit.errors import InputError

MOST_COMMANDS = 20_000
"""Commands that are followed at most; those of a function count each time that it is called."""
MOST_BYTES = 256 * 1024
"""Size of a script; launch scripts have a few kilobytes."""
_MOST_FILES = 60
_DEEPEST_CALL = 20
_DEEPEST_FILE = 10
SHOWS_TEXT = frozenset({"echo", "printf", "cat", "logger", "tee", "grep", "sed", "awk"})
"""Programs that only handle text, even if that is a command."""
_SHELLS = frozenset({"bash", "sh", "zsh"})
_TAKES_SCRIPT = _SHELLS | {"ssh", "sbatch", "salloc", "qsub", "bsub"}
_WRITES = frozenset({"cat", "tee"})
_PROGRAM = re.compile(r"(\.py|\btorchrun|\btorch\.distributed\.\w+)(?=\s)")
_OPTION = re.compile(r"\s-")
_SILENT = frozenset({"mkdir", "rm", "cp", "mv", "ln", "chmod", "touch", "sleep", "wait", "kill"})
"""Programs that print nothing where they succeed."""
_TESTS = frozenset(
    {"grep", "egrep", "fgrep", "command", "which", "type", "hash", "pgrep", "diff", "cmp", "nc"}
    | {"ping", "curl", "wget", "nvidia-smi", "rocm-smi", "mountpoint", "dpkg", "pip", "git"}
)
"""Programs that scripts run for whether they succeed."""
_SETS_UP = frozenset(
    {"activate", "conda.sh", ".bashrc", "bashrc", ".profile", "profile", ".bash_profile"}
    | {"modules.sh", "lmod.sh", "init.sh", "nccl-profile.sh"}
)
"""Files that set up programs and libraries, and no arguments of a job: they are not read."""
_NO_FILES = ("/proc/", "/sys/", "/dev/")


@dataclass(frozen=True)
class Started:
    """A program that the script would start.

    Attributes:
        words: its name and arguments.
        outer: words of the programs that receive it as text, such as srun's.
        environment: what the script exports to it, by name.
        not_exported: variables of the script that it does not see.
        line: its line.
        file: the file that the line is in; empty for the script itself.
        unread: why a variable or an argument that is missing may be there all the same, such as a
            file that is not here; empty where everything was read.
    """

    words: tuple[Field, ...]
    outer: tuple[Field, ...]
    environment: dict[str, Field]
    not_exported: dict[str, Field]
    line: int
    file: str = ""
    unread: str = ""


@dataclass
class Output:
    """What commands print.

    Attributes:
        pieces: the text so far.
        unknown: why not all of it is known; None where it is.
    """

    pieces: list[Piece] = field(default_factory=list)
    unknown: Unknown | None = None


class Processes(Builtins):
    """Everything that happens in, or makes, another process."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.started: list[Started] = []
        self.outer: tuple[Field, ...] = ()
        self.output: Output | None = None
        self.calls = 0
        self.files = 0
        self.file_depth = 0

    def block(self, block: CommandList) -> Status:
        """Follow commands in order."""
        raise NotImplementedError

    # ----------------------------------------------------------------------- other processes

    @contextmanager
    def own_process(self) -> Iterator[None]:
        """What happens in a process of its own: nothing of it stays."""
        before, stream, loops = self.expander.state, self.input, self.loops
        # A break leaves no loop of another process.
        self.expander.state, self.loops = before.copy(), 0
        try:
            yield
        finally:
            self.expander.state, self.input, self.loops = before, stream, loops

    @contextmanager
    def printing(self, output: Output | None) -> Iterator[None]:
        """Collect what commands print; None for a file or the terminal."""
        before, self.output = self.output, output
        try:
            yield
        finally:
            self.output = before

    def ended(self, block: CommandList) -> Status:
        """Follow the commands of a process up to its end, which ends nothing else."""
        try:
            return self.block(block)
        except Stop as stop:
            return stop.status

    def captured(self, command: object) -> Field:
        """What a command substitution gives."""
        assert isinstance(command, Command)
        lines = command.text.strip().splitlines() or [""]
        why = f"it is set by the command {lines[0][:50]!r}, which is not run"
        lacking = Unknown(None, why, command.line)
        self._deeper(command.line, "commands in values nest without end")
        output = Output()
        try:
            if command.body is None:
                output.unknown = lacking
            else:
                with self.own_process(), self.printing(output):
                    self.ended(command.body)
        finally:
            self.calls -= 1
        if output.unknown is not None:
            return not_known(lacking if output.unknown.name is None else output.unknown)
        value = Field(tuple(output.pieces))
        return part_of(value, 0, len(value.text.rstrip("\n")))

    def _deeper(self, line: int, problem: str) -> None:
        if self.calls >= _DEEPEST_CALL:
            raise InputError(f"{self.state.source}:{line}: {problem}")
        self.calls += 1

    def printed(self, value: Field) -> None:
        """What a command prints, for a substitution or the next command of a pipeline."""
        if self.output is None:
            return
        self.output.pieces += value.pieces
        if value.unknown is not None and self.output.unknown is None:
            self.output.unknown = value.unknown

    def do_echo(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if self.output is None:
            # Shown to the user: the program is listed, as others are.
            self.start(node, words)
            return Status.YES
        rest = words[1:]
        if rest and re.fullmatch(r"-[neE]+", rest[0].text):
            lacking = next((w.unknown for w in rest if w.unknown is not None), None)
            text = echoed([w.text for w in rest])
            self.printed(known(text, node.line) if lacking is None else not_known(lacking))
            return Status.YES
        pieces: list[Piece] = []
        for number, word in enumerate(rest):
            pieces += [Piece(" ", node.line)] if number else []
            pieces += word.pieces
        self.printed(Field((*pieces, Piece("\n", node.line))))
        return Status.YES

    def do_cd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w for w in words[1:] if not re.fullmatch(r"--|-[LPe@]+", w.text)]
        target = names[0] if names else None
        here = self.state.folder
        if target is None or target.unknown is not None or target.text[:1] in ("-", "~", ""):
            self.state.folder = None
        elif target.text.startswith("/") or here is not None:
            self.state.folder = os.path.normpath(Path(here or "/", target.text))
        return Status.YES

    def do_popd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        self.state.folder = None
        return Status.YES

    def do_pwd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        folder = self.state.folder
        unknown = Unknown(None, "the working folder is not known", node.line)
        self.printed(not_known(unknown) if folder is None else known(f"{folder}\n", node.line))
        return Status.YES

    # ------------------------------------------------------------------------------ programs

    def fed_to(self, node: Simple) -> Field | None:
        """The input of a program; None where it is not known."""
        if node.inputs:
            return with_end(self.expander.scalar(node.inputs[-1]))
        return None if node.reads else self.input.text

    def program(self, node: Simple, words: list[Field]) -> Status:
        """A command that is no builtin and no function."""
        script = self.script_fed(node, words)
        inner = [w for w in words if is_command_line(w.text)]
        if script is None and words[0].text not in SHOWS_TEXT and inner:
            script = inner[0]
        if script is not None:
            return self.pass_on(node, words, script)
        file = self.script_file(words)
        if file is not None:
            return self.run_file(node, words, *file)
        name = PurePosixPath(words[0].text).name
        if self.output is not None:
            fed = self.fed_to(node)
            text = None
            if all(w.unknown is None for w in words) and (fed is None or fed.unknown is None):
                arguments = [w.text for w in words[1:]]
                text = printed(name, arguments, None if fed is None else fed.text)
            if text is not None:
                self.printed(known(text, node.line))
                return Status.YES
            if name not in _SILENT:
                lacking = next((w.unknown for w in words if w.unknown is not None), None)
                why = f"it is printed by {name}, which is not run"
                self.printed(not_known(lacking or Unknown(None, why, node.line)))
        self.start(node, words)
        return Status.UNKNOWN if name in _TESTS else Status.ASSUMED

    def start(self, node: Simple, words: list[Field]) -> None:
        """Record a program that is started."""
        state = self.state
        visible = state.exported()
        every = state.every()
        hidden = {n: v for n, v in every.items() if n not in visible and isinstance(v, Field)}
        file = "" if state.source == state.path else state.source
        self.started.append(
            Started(tuple(words), self.outer, visible, hidden, node.line, file, state.unread)
        )

    def script_fed(self, node: Simple, words: list[Field]) -> Field | None:
        """A script that a heredoc passes to a shell or a scheduler, or writes to a file."""
        names = {PurePosixPath(word.text).name for word in words}
        if not node.inputs or not (names & _TAKES_SCRIPT or (names & _WRITES and node.writes)):
            return None
        text = self.expander.scalar(node.inputs[-1])
        return text if is_command_line(text.text) else None

    def pass_on(self, node: Simple, words: list[Field], script: Field) -> Status:
        """Commands that are passed to another program, such as ``srun bash -c "torchrun …"``."""
        outer, self.outer = self.outer, (*self.outer, *(w for w in words if w is not script))
        rest = words[words.index(script) + 1 :] if script in words else []
        text = without_start(script, "--wrap=") if script.text.startswith("--wrap=") else script
        try:
            with self.own_process():
                self._keep_exported()
                names = {PurePosixPath(word.text).name for word in words}
                if script in words and names & _SHELLS:
                    # bash -c 'commands' name first second
                    self.state.positional = list(rest[1:])
                    self.state.has_all_arguments = True
                self.set_up_slurm(script.text, words, node.line)
                return self.nested([text], node.line)
        except Stop as stop:
            return stop.status
        finally:
            self.outer = outer

    def _keep_exported(self) -> None:
        """Another shell has the exported variables alone."""
        state = self.state
        kept: dict[str, Variable] = {}
        for scope in state.scopes:
            kept |= {n: v for n, v in scope.items() if v.exported or n in state.given}
        state.scopes = [kept]
        state.functions = {}

    def set_up_slurm(self, text: str, words: Sequence[Field], line: int) -> None:
        """The variables that Slurm sets for a batch script."""
        for name, value in slurm_variables(text, words).items():
            if self.state.value(name) is None:
                self.state.put(name, known(value, line))
            self.state.mark(name, exported=True)

    def nested(self, text: list[Field], line: int) -> Status:
        """Commands in a value, such as ``eval``'s arguments."""
        self._deeper(line, "commands in values nest without end")
        source, lines = "", list[int]()
        names = self.state.scopes[0]
        for value in text:
            for piece in (*value.pieces, Piece(" ", 0)):
                shown = piece.text
                if piece.unknown is not None:
                    # It stays unknown where it is used, and is reported there.
                    name = f"__unknown_{len(names)}"
                    shown = f"${{{name}}}"
                    names[name] = Variable(Field((piece,)))
                source += shown
                lines += [piece.line or line] * len(shown)
        try:
            block = parse_script(
                source, self.state.source, lambda at: lines[at] if at < len(lines) else line
            )
            return self.block(block)
        finally:
            self.calls -= 1

    # --------------------------------------------------------------------------------- files

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
        if PurePosixPath(rest[0].text).name in _SHELLS:
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


def is_command_line(text: str) -> bool:
    """Whether a value looks like ``torchrun … -…``, as in ``bash -c "torchrun …"``."""
    program = _PROGRAM.search(text)
    return program is not None and _OPTION.search(text, program.end()) is not None
