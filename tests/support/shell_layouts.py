"""One shell script in many layouts: blanks, comments, line ends and quotes that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


class Program:
    """A script of random contents, which depend on `contents`; its layout depends on `layout`.

    Args:
        contents: seed of what it does.
        layout: seed of how it is written; 0 for one statement a line and no more.
    """

    def __init__(self, contents: int, layout: int) -> None:
        self.contents = Random(contents)
        self.layout = Random(layout)
        self.plain = layout == 0
        self.functions = 0
        self.depth = 0
        self.text = "A=4\nB=8B\nR=(x)\n" + self.block(6) + "\n"

    def one(self, *choices: str) -> str:
        """A part of the contents."""
        return self.contents.choice(choices)

    def way(self, *choices: str) -> str:
        """A part of the layout; the first one is the plainest."""
        return choices[0] if self.plain else self.layout.choice(choices)

    # ----------------------------------------------------------------------------------- layout

    def blank(self) -> str:
        return self.way(" ", "  ", "\t", " \\\n  ", " \\\n\t\t")

    def end(self) -> str:
        """What ends a statement."""
        return self.way(
            "\n", ";\n", "; ", " ;", "\n\n", " # a note; if done\n", "\n  # then '\n\n\t"
        )

    def gap(self) -> str:
        """What can be after ``then``, ``do``, ``{`` and ``)``."""
        return self.way("\n", " ", "\n\t", "\n\n    ", " # why\n", "\n# fi\n")

    def word(self, text: str) -> str:
        begun, ended = f"{text[:1]}'{text[1:]}'", f'{text[:-1]}"{text[-1]}"'
        return self.way(text, f"'{text}'", f'"{text}"', begun, ended)

    def variable(self, name: str) -> str:
        return self.way(f'"${name}"', f'"${{{name}}}"', f"${name}", f"${{{name}}}")

    def some(self) -> str:
        """A word."""
        kind = self.contents.randint(0, 3)
        if kind == 0:
            return self.variable(self.one("A", "B"))
        return self.word(self.one("--tp", "4", "h100-x", "a.b/c", "8B", "--x=1"))

    # -------------------------------------------------------------------------------- statements

    def block(self, count: int) -> str:
        self.depth += 1
        text = ""
        for number in range(count):
            text += (self.end() if number else "") + self.statement()
        self.depth -= 1
        return text

    def closed(self, count: int) -> str:
        """A block with what ends its last statement."""
        return self.block(count) + self.end()

    def statement(self) -> str:
        flat: list[Callable[[], str]] = [self.assignment, self.launch, self.launch, self.array]
        deep = [self.branch, self.case, self.loop, self.function, self.group, self.listed]
        return self.contents.choice(flat if self.depth > 3 else flat + deep)()

    def assignment(self) -> str:
        export = self.one("", "export")
        start = f"{export}{self.blank()}" if export else ""
        return f"{start}{self.one('A', 'B')}={self.some()}"

    def array(self) -> str:
        inside = self.way(" ", "\n  ", " # one\n", " \\\n").join(self.some() for _ in range(3))
        return f"R=({self.way('', ' ', chr(10))}{inside}{self.way('', ' ', chr(10))})"

    def launch(self) -> str:
        words = ["run", *(self.some() for _ in range(self.contents.randint(1, 3)))]
        if self.contents.random() < 0.3:
            words.append('"${R[@]}"')
        return self.blank().join(words)

    def condition(self) -> str:
        name, value = self.one("A", "B"), self.one("4", "8B", "h100-x")
        sign = self.one("=", "!=")
        left, right = self.variable(name), self.word(value)
        inside = self.blank().join((left, sign, right))
        return self.way(f"[ {inside} ]", f"[\t{inside}  ]", f"test {inside}", f"[[ {inside} ]]")

    def branch(self) -> str:
        text = f"if{self.blank()}{self.condition()}{self.end()}then{self.gap()}{self.closed(2)}"
        if self.contents.random() < 0.4:
            text += f"elif {self.condition()}{self.end()}then{self.gap()}{self.closed(1)}"
        if self.contents.random() < 0.5:
            text += f"else{self.gap()}{self.closed(1)}"
        return text + "fi"

    def case(self) -> str:
        text = f"case{self.blank()}{self.variable(self.one('A', 'B'))}{self.blank()}in{self.gap()}"
        for pattern in (self.one("4", "8*"), self.one("h*", "[0-9]*"), "*"):
            opened = self.way("", "(", "( ")
            body = f"{self.way(pattern, f'{pattern} ')}){self.gap()}{self.block(1)}"
            text += opened + body + self.way("\n;;\n", " ;;\n", ";;\n  ", "\n\n\t;; # next\n")
        return text + "esac"

    def loop(self) -> str:
        words = self.blank().join(self.word(w) for w in ("1", "2"))
        head = f"for{self.blank()}A{self.blank()}in {words}"
        return f"{head}{self.end()}do{self.gap()}{self.closed(2)}done"

    def function(self) -> str:
        self.functions += 1
        name = f"f{self.functions}"
        head = self.way(
            f"{name}() ", f"{name} ( )\n", f"function {name} ", f"function {name}()\n\n"
        )
        return f"{head}{{{self.gap()}{self.closed(2)}}}{self.end()}{name}"

    def group(self) -> str:
        if self.contents.random() < 0.5:
            return f"{{{self.gap()}{self.closed(1)}}}"
        # (( would begin an expression.
        return f"({self.way(' ', chr(10))}{self.block(1)}{self.way('', ' ', chr(10))})"

    def listed(self) -> str:
        sign = self.one("&&", "||")
        after = self.way(" ", "\n", "  \n# then\n  ")
        return f"{self.condition()}{self.blank()}{sign}{after}{self.launch()}"
