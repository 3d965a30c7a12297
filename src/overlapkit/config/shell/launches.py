"""Programs of a followed script: those that start others, and those that only print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from overlapkit.config.shell.commands.programs import printed
from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.files import Files
from overlapkit.config.shell.grammar.syntax import Simple
from overlapkit.config.shell.passed import SHELLS, Passed, is_command_line, passed_by
from overlapkit.config.shell.state import is_all_arguments
from overlapkit.config.shell.values import (
    Field,
    Unknown,
    known,
    not_known,
)

_TAKES_SCRIPT = SHELLS | {"ssh", "sbatch", "salloc", "qsub", "bsub"}
_WRITES = frozenset({"cat", "tee"})
_SILENT = frozenset({"mkdir", "rm", "cp", "mv", "ln", "chmod", "touch", "sleep", "wait", "kill"})
"""Programs that print nothing where they succeed."""
_TESTS = frozenset(
    {"grep", "egrep", "fgrep", "command", "which", "type", "hash", "pgrep", "diff", "cmp", "nc"}
    | {"ping", "curl", "wget", "nvidia-smi", "rocm-smi", "mountpoint", "dpkg", "pip", "git"}
)
"""Programs that scripts run for whether they succeed."""
_SETS_UP = frozenset({"conda", "mamba", "micromamba", "module", "ml", "spack", "workon"})
"""Programs and functions that set up others."""


def _prints_once_known(
    name: str, words: Sequence[Field], fed: Field | None, folder: str | None
) -> bool:
    """Whether what a program prints is known as soon as its arguments are."""
    if fed is not None and fed.unknown is not None:
        return False
    tried = ["1" if word.unknown is not None else word.text for word in words[1:]]
    return printed(name, tried, None if fed is None else fed.text, folder) is not None


class Programs(Files):
    """Commands that are no builtins and no functions."""

    def fed_to(self, node: Simple) -> Field | None:
        """The input of a program; None where it is not known."""
        if node.inputs:
            return self.fed(node.inputs[-1])
        return None if node.reads else self.input.text

    def program(self, node: Simple, words: list[Field]) -> Status:
        """A command that is no builtin and no function."""
        script = self.script_fed(node, words)
        passed = passed_by(words) if script is None else Passed(tuple(words), (script,))
        if passed is not None:
            return self.pass_on(node, passed)
        if PurePosixPath(words[0].text).name in _SETS_UP:
            self.sets_up(node.line, words)
        file = self.script_file(words)
        if file is not None:
            return self.run_file(node, words, *file)
        name = PurePosixPath(words[0].text).name
        if self.output is not None:
            fed = self.fed_to(node)
            text = None
            # What it prints without the script's own arguments is what they are taken as.
            words = [words[0], *(w for w in words[1:] if not is_all_arguments(w))]
            if all(w.unknown is None for w in words) and (fed is None or fed.unknown is None):
                arguments = [w.text for w in words[1:]]
                text = printed(
                    name, arguments, None if fed is None else fed.text, self.state.folder
                )
            if text is not None:
                self.printed(known(text, node.line))
                return Status.YES
            if name not in _SILENT:
                would_do = _prints_once_known(name, words, fed, self.state.folder)
                lacking = next((w.unknown for w in words if w.unknown is not None), None)
                lacking = lacking if would_do else None
                why = f"it is printed by {name}, which is not run"
                self.printed(not_known(lacking or Unknown(None, why, node.line)))
        self.start(node, words)
        return Status.UNKNOWN if name in _TESTS else Status.ASSUMED

    def script_fed(self, node: Simple, words: list[Field]) -> Field | None:
        """A script that a heredoc passes to a shell or a scheduler, or writes to a file."""
        names = {PurePosixPath(word.text).name for word in words}
        if not node.inputs or not (names & _TAKES_SCRIPT or (names & _WRITES and node.writes)):
            return None
        text = self.expander.scalar(node.inputs[-1])
        return text if is_command_line(text.text) else None

    def pass_on(self, node: Simple, passed: Passed) -> Status:
        """Commands that are passed to another program, such as ``srun bash -c "torchrun …"``."""
        outer, self.outer = self.outer, (*self.outer, *passed.outer)
        try:
            with self.own_process():
                self.hand_over(passed.outer)
                if passed.positional is not None:
                    self.state.pass_on(passed.positional)
                text = "\n".join(part.text for part in passed.text)
                self.set_up_slurm(text, passed.outer, node.line)
                return self.nested(list(passed.text), node.line)
        except Stop as stop:
            return stop.status
        finally:
            self.outer = outer
