"""Random shell scripts of the constructs that launch scripts have, and what bash makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from random import Random

BASH = shutil.which("bash")

_PRELUDE = 'exec 3>&1; run() { printf "%s\\037" run "$@" >&3; printf "\\036" >&3; }\n'
# seq is a program, and none can be reached.
_PRELUDE += (
    "seq() { local n a=1 b=1; (($# > 1)) && a=$1; (($# > 2)) && b=$2; "
    "for ((n = a; n <= ${!#}; n += b)); do echo $n; done; }\n"
)


def by_bash(text: str) -> list[list[str]]:
    """What bash starts of a script, the program `run` standing for all; nothing else is there."""
    done = subprocess.run(
        [str(BASH), "--norc", "-c", _PRELUDE + text],
        capture_output=True,
        check=False,
        env={"PATH": "/nonexistent"},
        timeout=60,
    )
    rows = done.stdout.decode(errors="replace").split("\x1e")[:-1]
    # What else the script prints comes between the rows.
    return [row[row.rindex("run\x1f") :].split("\x1f")[:-1] for row in rows if "run\x1f" in row]


class Writer:
    """Writes one script from a seed.

    Args:
        seed: of the choices.
        statements: how many statements it has at its top level.
    """

    def __init__(self, seed: int, statements: int = 8) -> None:
        self.random = Random(seed)
        self.depth = 0
        self.functions: list[str] = []
        self.loops = 0
        self.inside = 0
        body = [self.statement() for _ in range(statements)]
        self.text = "\n".join(
            ["A=3", "B=h100-x", 'C="x y"', "N=0", "R=(1 '2 b' 3)", *body, self.end()]
        )

    def end(self) -> str:
        return 'run end "$A" "$B" "$C" $N "${R[@]}" "$@" ${D:-none} "${E-}"'

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def number(self) -> str:
        return str(self.random.randint(0, 9))

    # ------------------------------------------------------------------------------ expressions

    def arithmetic(self, depth: int = 0) -> str:
        kind = self.random.randint(0, 9 if depth < 3 else 1)
        if kind < 2:
            return self.pick(self.number(), "A", "N", "$A", "0x1f", "010", "A", "2#101")
        a, b = self.arithmetic(depth + 1), self.arithmetic(depth + 1)
        return {
            2: f"({a} + {b})",
            3: f"{a} * {b}",
            4: f"({a} - {b})",
            5: f"{a} % ({self.random.randint(1, 9)})",
            6: f"({a} > {b} ? {a} : {b})",
            7: f"({a} && {b} || 0)",
            8: f"({a} << 1 | {b} & 7)",
            9: f"({a} == {b}) + !{self.number()}",
        }[kind]

    def value(self) -> str:
        kinds: list[Callable[[], str]] = [
            self.number,
            lambda: f"$(({self.arithmetic()}))",
            lambda: self.pick("$A", '"$B"', '"${C}"', "${B%-*}", "${B#*-}", "${B##*0}", "${B^^}"),
            lambda: self.pick("${B/h/H}", "${B//0/z}", "${B:1:3}", "${B: -2}", "${#B}", "${C,,}"),
            lambda: self.pick("${D:-5}", '"${D:-p q}"', "${E:+set}", "${A:+yes}", "${D:=dd}"),
            lambda: self.pick("${R[0]}", "${R[1]}", "${#R[@]}", '"${R[*]}"', "${R[-1]}", "$R"),
            lambda: self.pick('"$(echo $A)"', "$(echo a b)", '"$(printf %03d $A)"', "$(seq 2)"),
            lambda: self.pick("'single $A'", '"dq \\$A $A"', "x'y'\"z\"", "$'t\\tu'", "a\\ b"),
            lambda: self.pick("${B/#h/X}", "${B/%x/Y}", "${C@Q}", "${C// /_}", "${B%%[0-9]*}"),
            lambda: self.pick("$#", '"$*"', "${1:-first}", '"${2-}"', "${1-x}", "$?"),
        ]
        return self.random.choice(kinds)()

    def words(self) -> str:
        some = [self.value() for _ in range(self.random.randint(1, 3))]
        return " ".join(some)

    def condition(self) -> str:
        simple = [
            lambda: (
                self.pick('[ "$A"', '[ "$N"')
                + f" {self.pick('-gt', '-eq', '-le', '-ne')} {self.number()} ]"
            ),
            lambda: f"[[ $B {self.pick('==', '!=')} {self.pick('h*', '*100*', '[a-h]*', 'x?')} ]]",
            lambda: f"[[ $B == {self.pick('@(h100|b200)*', '!(a*)', '+([a-z])*', '[^h]*')} ]]",
            lambda: f'[ {self.pick("-z", "-n")} "${{{self.pick("A", "D", "E")}}}" ]',
            lambda: f"(( {self.arithmetic()} ))",
            lambda: self.pick("true", "false", "[[ -v A ]]", "[[ $B =~ ^h[0-9]+ ]]", "[ a = a ]"),
            lambda: self.pick('[ "$A" = 3 ]', '[ "$A" = 3 -o 1 = 2 ]', "[[ $A -lt 5 && -n $B ]]"),
        ]
        text = self.random.choice(simple)()
        if self.random.random() < 0.2:
            text = f"! {text}"
        if self.random.random() < 0.2:
            text = f"{text} {self.pick('&&', '||')} {self.random.choice(simple)()}"
        return text

    # ------------------------------------------------------------------------------- statements

    def block(self, most: int = 3) -> str:
        self.depth += 1
        count = self.random.randint(1, most)
        body = "\n".join(self.statement() for _ in range(count))
        self.depth -= 1
        return body

    def statement(self) -> str:
        simple: list[Callable[[], str]] = [
            self.assignment,
            self.assignment,
            self.assignment,
            self.array,
            self.counted,
            self.builtin,
            self.launch,
            self.listed,
        ]
        nested: list[Callable[[], str]] = [
            self.branch,
            self.case,
            self.loop,
            self.function,
            self.process,
        ]
        deep = self.depth >= 3
        return self.random.choice(simple if deep else simple + nested)()

    def assignment(self) -> str:
        name = self.pick("A", "B", "C", "D", "N")
        if name in ("A", "N"):
            return f"{name}=$(({self.arithmetic()}))"
        sign = self.pick("=", "=", "+=")
        return f"{name}{sign}{self.value()}"

    def array(self) -> str:
        return self.pick(
            f"R=({self.words()})",
            f"R+=({self.words()})",
            f"R[{self.random.randint(0, 2)}]={self.value()}",
            "R=(\n  1 # one\n  'two words'\n  $A\n)",
            'R=("${R[@]}" x)',
            "R=({1..3} {a,b}$A)",
            'R=("${R[@]:1:2}")',
            "declare -A M=([x]=1 [y]=$A); E=${M[x]}${M[y]}",
            "unset 'R[0]'; R=(\"${R[@]}\")",
        )

    def counted(self) -> str:
        return self.pick(
            "((N++))",
            "((N += 2, A = N))",
            "let N=N+3",
            ": $((N *= 2))",
            "((A = N > 3 ? 1 : 2))",
            f"((N = {self.arithmetic()}))",
            "declare -i I=2; I+=3; E=$I",
            "declare -u U=abc; E=$U",
            "declare -l L=ABC; E=$L",
        )

    def builtin(self) -> str:
        choices = [
            f"set -- {self.words()}",
            "shift",
            'set -- "$@" more',
            f"printf -v E '%s-%02d' {self.pick('x', '$B')} $A",
            'read -r D E <<< "$C"',
            'IFS=, read -ra R <<< "1,2,$A"',
            "read -r -d '' E <<EOF\nx $A\ny\nEOF",
            "unset D",
            f"export D={self.value()}",
            "eval 'E=$A'",
            "declare -n P=D; P=via; unset -n P",
            "mapfile -t R <<< $'l1\\nl2'",
            f"E=$(echo {self.value()}; echo more)",
            'IFS=- read -r D E <<< "$B"',
            "shopt -s extglob",
        ]
        return self.random.choice(choices)

    def launch(self) -> str:
        return self.pick(
            f"run {self.words()}",
            f"A=7 run x {self.value()}",
            f"run --a={self.value()} \\\n  --b {self.value()}",
            f"run {self.words()} > /dev/null 2>&1",
        )

    def listed(self) -> str:
        connector = self.pick("&&", "||")
        return f"{self.condition()} {connector} {self.assignment()}"

    def branch(self) -> str:
        text = f"if {self.condition()}; then\n{self.block()}\n"
        if self.random.random() < 0.4:
            text += f"elif {self.condition()}\nthen\n{self.block()}\n"
        if self.random.random() < 0.6:
            text += f"else\n{self.block()}\n"
        return text + "fi"

    def case(self) -> str:
        items = []
        for _ in range(self.random.randint(1, 3)):
            pattern = self.pick("h*", "3", "x|y", "*y*", "[0-9]", "[^a-z]*", '"$A"', "h100-x")
            end = self.pick(";;", ";;", ";;", ";&", ";;&")
            gap = self.pick(" ", "\n")
            body = self.block(2)
            # A heredoc ends with a line of its own.
            close = "\n" if body.endswith("EOF") else gap
            items.append(f"{pattern}){gap}{body}{close}{end}")
        items.append(f"*) {self.block(1)}\n;;")
        return f"case {self.pick('$A', '$B', '$C', '$#')} in\n" + "\n".join(items) + "\nesac"

    def loop(self) -> str:
        self.loops += 1
        variable = f"i{self.loops}"
        leave = self.pick(
            "",
            "",
            f"[ ${variable} = 2 ] && break",
            f"[ ${variable} = 1 ] && continue",
            f"[ ${variable} = 2 ] && break 2",
            f"(({variable} == 2)) && continue 2",
        )
        self.inside += 1
        body = f"{self.block(2)}\n{leave}\nrun loop ${variable}"
        self.inside -= 1
        head = self.pick(
            f"for {variable} in 1 2 3; do",
            f"for {variable} in $(seq 2); do",
            f"for (({variable}=0; {variable}<3; {variable}++)); do",
            f"for {variable} in {{1..3}}; do",
            f'for {variable} in "${{R[@]}}"; do',
            f"{variable}=0; while (({variable}++ < 2)); do",
            f"{variable}=0; until [ ${variable} -ge 2 ]; do {variable}=$(({variable}+1)); ",
        )
        return f"{head}\n{body}\ndone"

    def function(self) -> str:
        name = f"f{len(self.functions)}"
        local = self.pick("", "local A=9", "local D=$1 N", "declare B=inner")
        returns = self.pick("", "return 0", "return 1", '[ -n "$1" ]', "return $(($# % 2))")
        inside, self.inside = self.inside, 0
        head = self.pick(f"{name}() {{", f"function {name} {{", f"{name} ()\n{{")
        text = f'{head}\n{local}\n{self.block(2)}\nrun in {name} $# "$@" $A\n{returns}\n}}'
        self.inside = inside
        self.functions.append(name)
        call = self.pick(
            f"{name} {self.words()}",
            f"A=8 {name} x",
            f"{name} && D=ok",
            f"{name} a || D=bad",
            f"if {name} 1; then E=yes; else E=no; fi",
            f"E=$({name} q; echo out)",
            f"! {name}",
        )
        return f"{text}\n{call}"

    def process(self) -> str:
        return self.pick(
            f"( {self.block(2)}\n)",
            f"{{ {self.block(2)}\n}}",
            f"echo x | {{ {self.block(2)}\n}}",
            "A=99 &\nwait",
            f'( set -- p q; run sub "$@"; {self.assignment()} )',
            'echo "a b c" | while read -r x y; do run piped "$x" "$y"; done',
            'while read -r x; do run line "$x"; done <<< "$C"',
            'while IFS= read -r x; do run line "$x"; done <<EOF\n1 $A\n2\nEOF',
        )
