"""Programs that only turn text into text, such as ``seq 3`` and ``basename X``: never run either.

What they print is calculated here, where it is simple; anything else is not known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from overlapkit.config.shell.commands.getopt import arranged
from overlapkit.config.shell.grammar.escapes import unescaped

_MOST = 100_000
"""Characters that a program here prints at most."""
_SPEC = re.compile(
    r"%(?:(?P<percent>%)|(?P<flags>[-0+ #]*)(?P<width>\d{0,3}|\*)"
    r"(?:\.(?P<digits>\d{0,3}|\*))?(?P<kind>[a-zA-Z(]))"
)
_WHOLE = frozenset("diouxX")
_DECIMALS = frozenset("eEfFgG")


def formatted(words: Sequence[str]) -> str | None:
    """What ``printf`` prints of a format and its arguments; None where that is not simple."""
    if not words:
        return None
    template, arguments = unescaped(words[0], "printf"), list(words[1:])
    result = ""
    while True:
        before = len(arguments)
        once = _formatted_once(template, arguments)
        if once is None:
            return None
        result += once
        # The format is used again while arguments are left.
        if not arguments or len(arguments) == before or len(result) > _MOST:
            return result


def _formatted_once(template: str, arguments: list[str]) -> str | None:
    result, at = "", 0
    for spec in _SPEC.finditer(template):
        plain, at = template[at : spec.start()], spec.end()
        if "%" in plain:
            return None
        result += plain
        if spec["percent"]:
            result += "%"
            continue
        if "*" in (spec["width"], spec["digits"]):
            return None
        argument = arguments.pop(0) if arguments else ""
        shown = _shown(spec, argument)
        if shown is None:
            return None
        result += shown
    rest = template[at:]
    return None if "%" in rest else result + rest


def _shown(spec: re.Match[str], argument: str) -> str | None:
    kind = spec["kind"]
    if kind in "sbcq":
        if kind == "q" and not argument.isprintable():
            return None
        text = unescaped(argument, "echo") if kind == "b" else argument
        text = text[:1] if kind == "c" else quoted_word(argument) if kind == "q" else text
        text = text if spec["digits"] is None else text[: int(spec["digits"] or 0)]
        width = int(spec["width"] or 0)
        return text.ljust(width) if "-" in spec["flags"] else text.rjust(width)
    try:
        if kind in _DECIMALS:
            number: float | int = float(argument or 0)
        elif kind in _WHOLE:
            number = _whole(argument)
        else:
            return None
    except ValueError:
        return None
    digits = "" if spec["digits"] is None else f".{spec['digits'] or 0}"
    kind = "d" if kind in "iu" else kind
    return f"%{spec['flags']}{spec['width']}{digits}{kind}" % number


def _whole(argument: str) -> int:
    """A whole number as C writes it, or the code of a character after a quote."""
    if argument[:1] in ("'", '"') and len(argument) > 1:
        return ord(argument[1])
    digits = argument.strip() or "0"
    octal = re.fullmatch(r"[-+]?0[0-7]+", digits)
    return int(digits, 8 if octal else 0)


def quoted_word(text: str) -> str:
    """A printable text as ``printf %q`` writes it."""
    return re.sub(r"(^[~#]|(?<=[=:])~|[ \"'\\|&;()<>!{}*\[\]?^$`,])", r"\\\1", text) or "''"


def echoed(words: Sequence[str]) -> str:
    """What ``echo`` prints of its arguments."""
    ends, escapes = "\n", False
    rest = list(words)
    while rest and re.fullmatch(r"-[neE]+", rest[0]):
        option = rest.pop(0)
        ends = "" if "n" in option else ends
        escapes = "e" in option
    text = " ".join(rest)
    return (unescaped(text, "echo") if escapes else text) + ends


def printed(
    name: str, words: Sequence[str], fed: str | None, folder: str | None = None
) -> str | None:
    """What a program prints; None where that is not known without running it.

    Args:
        name: the program.
        words: its arguments.
        fed: its input; None where that is not known or there is none.
        folder: the working folder; None where that is not known.
    """
    if name in ("readlink", "realpath"):
        return _resolved(name, words, folder)
    program = _PROGRAMS.get(PurePosixPath(name).name)
    if program is None:
        return None
    try:
        return program(list(words), fed)
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None


def _resolved(name: str, words: Sequence[str], folder: str | None) -> str | None:
    """``realpath FILE`` and ``readlink -f FILE``: whole paths, without links."""
    options = [word for word in words if re.fullmatch(r"-[femsLP]|--canonicalize\S*", word)]
    files = [word for word in words if word not in options and word != "--"]
    if any(word.startswith("-") for word in files) or "-s" in options:
        return None
    if name == "readlink" and not options:
        # The target of a link alone.
        return None
    if folder is None and not all(word.startswith("/") for word in files):
        return None
    return "".join(f"{os.path.realpath(Path(folder or '/', word))}\n" for word in files)


def _seq(words: list[str], fed: str | None) -> str | None:
    separator = "\n"
    while words and words[0].startswith("-") and not re.fullmatch(r"-\d+", words[0]):
        option = words.pop(0)
        if option == "-s":
            separator = words.pop(0)
        elif option.startswith("-s"):
            separator = option[2:]
        else:
            return None
    numbers = [int(word) for word in words]
    if not 1 <= len(numbers) <= 3:
        return None
    first = numbers[0] if len(numbers) > 1 else 1
    step, last = numbers[1] if len(numbers) == 3 else 1, numbers[-1]
    members = range(first, last + (1 if step > 0 else -1), step)
    if len(members) > _MOST // 10:
        return None
    return separator.join(map(str, members)) + ("\n" if members else "")


def _basename(words: list[str], fed: str | None) -> str | None:
    words = [word for word in words if word != "--"]
    if not words or words[0].startswith("-") or len(words) > 2:
        return None
    name = words[0].rstrip("/").rpartition("/")[2] or "/"
    suffix = words[1] if len(words) == 2 else ""
    return (name.removesuffix(suffix) if name != suffix else name) + "\n"


def _dirname(words: list[str], fed: str | None) -> str | None:
    words = [word for word in words if word != "--"]
    if len(words) != 1 or words[0].startswith("-"):
        return None
    return str(PurePosixPath(words[0] or ".").parent) + "\n"


def _expr(words: list[str], fed: str | None) -> str | None:
    if not all(re.fullmatch(r"\d{1,15}|[-+*/%()]", word) for word in words):
        return None
    # Each operator is a word of its own, so that the texts cannot join to something else.
    return _counted(" ".join(words)) if words else None


def _bc(words: list[str], fed: str | None) -> str | None:
    if fed is None or words or not re.fullmatch(r"[\d\s()+*/%-]{1,200}", fed):
        return None
    return _counted(fed.strip())


class _NoVariables:
    def number_of(self, name: str, index: int | None) -> int:
        raise ValueError(name)

    def set_number(self, name: str, index: int | None, value: int) -> None:
        raise ValueError(name)


def _counted(text: str) -> str | None:
    # Imported here: few scripts need it.
    from overlapkit.config.shell.expansion.arithmetic import Incalculable, calculate

    if re.search(r"(?<!\d)0\d", text):
        return None
    try:
        return f"{calculate(text, _NoVariables())}\n"
    except Incalculable:
        return None


def _cat(words: list[str], fed: str | None) -> str | None:
    return fed if not words or words == ["-"] else None


def _wc(words: list[str], fed: str | None) -> str | None:
    if fed is None or len(words) != 1:
        return None
    counts = {"-l": fed.count("\n"), "-w": len(fed.split()), "-c": len(fed.encode())}
    return f"{counts[words[0]]}\n" if words[0] in counts else None


def _tr(words: list[str], fed: str | None) -> str | None:
    if fed is None:
        return None
    plain = [unescaped(word, "printf") for word in words]
    named = {"[:upper:]": "[:lower:]", "[:lower:]": "[:upper:]"}
    if len(plain) == 2 and named.get(plain[0]) == plain[1]:
        return fed.lower() if plain[0] == "[:upper:]" else fed.upper()
    if words and words[0] == "-d" and len(words) == 2 and _is_set(plain[1]):
        return "".join(char for char in fed if char not in plain[1])
    if len(words) != 2 or words[0].startswith("-") or not plain[1] or not all(map(_is_set, plain)):
        return None
    last = plain[1][-1]
    by = {c: plain[1][n] if n < len(plain[1]) else last for n, c in enumerate(plain[0])}
    return "".join(by.get(char, char) for char in fed)


def _is_set(text: str) -> bool:
    """Whether a set of ``tr`` has no ranges or classes."""
    return "[:" not in text and re.search(r".-.", text) is None


def _cut(words: list[str], fed: str | None) -> str | None:
    if fed is None:
        return None
    delimiter, fields = "\t", ""
    while words:
        option = words.pop(0)
        if option[:2] not in ("-d", "-f"):
            return None
        value = option[2:] or words.pop(0)
        delimiter, fields = (value, fields) if option[:2] == "-d" else (delimiter, value)
    found = re.fullmatch(r"(\d{1,4})(-(\d{0,4}))?", fields)
    if found is None or len(delimiter) != 1 or int(found[1]) < 1:
        return None
    start = int(found[1]) - 1
    end = (int(found[3]) if found[3] else None) if found[2] else start + 1
    rows = []
    for row in fed.splitlines():
        parts = row.split(delimiter)
        rows.append(row if len(parts) == 1 else delimiter.join(parts[start:end]))
    return "".join(f"{row}\n" for row in rows)


def _awk(words: list[str], fed: str | None) -> str | None:
    """Fields of each line, or their number: ``-F, '{print NF}'``, ``'{print $1}'``."""
    if fed is None:
        return None
    separator: str | None = None
    if words[0].startswith("-F"):
        option = words.pop(0)[2:]
        separator = unescaped(option or words.pop(0), "printf")
    found = re.fullmatch(r"\s*\{\s*print\s+(NF|\$NF|\$\d{1,4})\s*;?\s*\}\s*", words[0])
    # A longer separator is a pattern, and t is a tab to some.
    plain = separator is None or (len(separator) == 1 and separator != "t")
    if found is None or len(words) != 1 or not plain:
        return None
    shown, rows = found[1], []
    for row in fed.removesuffix("\n").split("\n") if fed else []:
        if separator in (None, " "):
            parts = re.findall(r"[^ \t]+", row)
        else:
            parts = row.split(separator) if row else []
        at = len(parts) if shown == "$NF" else int(shown[1:]) if shown != "NF" else 0
        text = parts[at - 1] if 0 < at <= len(parts) else "" if at else row
        rows.append(str(len(parts)) if shown == "NF" else text)
    return "".join(f"{row}\n" for row in rows)


def _ends(words: list[str], fed: str | None, *, first: bool) -> str | None:
    if fed is None:
        return None
    text = "".join(words) or "-n10"
    found = re.fullmatch(r"-n?(\d{1,6})", text)
    if found is None:
        return None
    rows, count = fed.splitlines(keepends=True), int(found[1])
    return "".join(rows[:count] if first else rows[-count:] if count else [])


_PROGRAMS: dict[str, Callable[[list[str], str | None], str | None]] = {
    "seq": _seq,
    "getopt": lambda words, fed: arranged(words),
    "basename": _basename,
    "dirname": _dirname,
    "expr": _expr,
    "bc": _bc,
    "cat": _cat,
    "wc": _wc,
    "tr": _tr,
    "cut": _cut,
    "awk": _awk,
    "gawk": _awk,
    "mawk": _awk,
    "head": lambda words, fed: _ends(words, fed, first=True),
    "tail": lambda words, fed: _ends(words, fed, first=False),
}
