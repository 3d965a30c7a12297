"""The jobs that a script starts, to see what a change of the script makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from overlapkit.config.megatron_lm.flag_edits import dashed, words_of
from overlapkit.config.megatron_lm.flags import FLAGS, flag_value
from overlapkit.config.megatron_lm.launch_line import is_launch, split_launch
from overlapkit.config.places import Place
from overlapkit.config.run import Settings
from overlapkit.config.shell.follow import Started, follow_script
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.sources import Source
from overlapkit.config.text_file import exists
from overlapkit.fix.yaml_edit import same


def passed_flags(settings: Settings) -> dict[str, Place]:
    """The flags that a job is given, with the place of each."""
    return settings.launch.passed if settings.launch is not None else {}


def file_and_line(name: str) -> tuple[str, int | None]:
    """A file, and the line that selects one of the launches in it."""
    file, _, line = name.rpartition(":")
    if file and line.isdecimal() and len(line) < 8 and not exists(name):
        return file, int(line)
    return name, None


def moved(old: str, new: str, line: int) -> int:
    """The line in the new text that a line of the old one became: they differ in one place."""
    before, after = old.split("\n"), new.split("\n")
    above = 0
    for one, other in zip(before, after, strict=False):
        if one != other:
            break
        above += 1
    added = len(after) - len(before)
    if line <= above:
        return line
    if line - 1 > above or after[line - 1 + added : line + added] == [before[line - 1]]:
        return line + added
    # The line itself has the change.
    return line


def variables_of(source: Source) -> dict[str, str]:
    """The variables that the caller gave a script."""
    dotted = ("+", "~")
    given = (t.split("=", 1) for t in source.given if "=" in t and not t.startswith(dotted))
    return {name: value for name, value in given if "." not in name}


def launches(source: Source, text: str) -> list[Started]:
    """The jobs that a script starts."""
    text = text.replace("\r\n", "\n")
    path, _ = file_and_line(source.name)
    followed = follow_script(text, path, variables_of(source), slurm_variables(text))
    return [started for started in followed.started if is_launch(started)]


def launch_line(source: Source, text: str) -> int | None:
    """The line of the launch that is fixed."""
    _, wanted = file_and_line(source.name)
    lines = [started.line for started in launches(source, text)]
    if wanted is not None:
        return wanted
    return lines[0] if lines else None


def other_launches(source: Source, text: str) -> list[tuple[str, ...]]:
    """The command lines and variables of the script's jobs but for that of a line that the user
    named."""
    _, wanted = file_and_line(source.name)
    if wanted is None:
        return []
    others = [started for started in launches(source, text) if started.line != wanted]
    return [
        (
            *(word.text for word in started.words),
            *sorted(f"{name}={value.text}" for name, value in started.environment.items()),
        )
        for started in others
    ]


def is_passed(source: Source, text: str, settings: Settings, words: Sequence[str]) -> bool:
    """Whether a flag is passed with these words, and no others."""
    flag = words[0]
    if flag in FLAGS and flag not in passed_flags(settings):
        return False
    _, wanted = file_and_line(source.name)
    started = [each for each in launches(source, text) if wanted in (None, each.line)]
    if started:
        given = split_launch(started[-1])[1]
        return words_passed([word.text for word in given], flag) == list(words[1:])
    # The script sets the flags for another one.
    if flag not in FLAGS:
        return True
    value, flat = flag_value(flag, list(words[1:]), flag), settings.flat()
    return all(same(flat.get(key), value) for key in FLAGS[flag].keys)


def words_passed(arguments: Sequence[str], flag: str) -> list[str] | None:
    """The words after a flag, where it is passed last; None where it is not passed."""
    result = None
    for number, word in enumerate(arguments):
        if word.startswith("--") and dashed(word) == flag:
            following = list(takewhile(lambda w: not w.startswith("--"), arguments[number + 1 :]))
            inline = [word.partition("=")[2]] if "=" in word else []
            result = [*inline, *following[: words_of(word, following)]]
    return result
