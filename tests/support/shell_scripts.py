"""Random shell scripts of the constructs that launch scripts have, and what bash makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from random import Random

from overlapkit.config.shell.follow import Followed
from overlapkit.config.shell.values import Field

BASH = shutil.which("bash")

_PRELUDE = r"""exec 3>&1
run() {
  local IFS=$' \t\n' name
  printf '%s\037' run "$@" >&3
  printf '\035' >&3
  for name in $(compgen -e); do
    case $name in PATH | PWD | OLDPWD | SHLVL | _) continue ;; esac
    printf '%s=%s\037' "$name" "${!name-}" >&3
  done
  printf '\036' >&3
}
# Programs that only turn text into text: none can be reached.
seq() {
  local n a=1 b=1
  (($# > 1)) && a=$1
  (($# > 2)) && b=$2
  for ((n = a; n <= ${!#}; n += b)); do echo $n; done
}
cat() { local row; while IFS= read -r row; do echo "$row"; done; }
"""

Start = tuple[list[str], dict[str, str]]
"""The words of a program that is started, and the exported variables that it gets."""


def starts_by_bash(text: str) -> list[Start]:
    """What bash starts of a script, the program `run` standing for all; nothing else is there."""
    done = subprocess.run(
        [str(BASH), "--norc", "-c", _PRELUDE + text, "t.sh"],
        capture_output=True,
        check=False,
        env={"PATH": "/nonexistent"},
        timeout=60,
    )
    result: list[Start] = []
    for row in done.stdout.decode(errors="replace").split("\x1e")[:-1]:
        # What else the script prints comes between the rows.
        words, _, variables = row[row.index("run\x1f") :].partition("\x1d")
        pairs = (each.partition("=") for each in variables.split("\x1f")[:-1])
        result.append((words.split("\x1f")[:-1], {name: value for name, _, value in pairs}))
    return result


def starts(followed: Followed) -> list[Start]:
    """What is followed of the program `run`: its words, and what is exported to it.

    Words that only stand for the script's own arguments are left out: bash is given none.
    """
    return [
        (
            [word.text for word in each.words if word.text or not _is_of_arguments(word)],
            {name: value.text for name, value in each.environment.items()},
        )
        for each in followed.started
        if each.words[0].text == "run"
    ]


def _is_of_arguments(word: Field) -> bool:
    return word.unknown is not None and word.unknown.unset and word.unknown.name == "@"


def by_bash(text: str) -> list[list[str]]:
    """The words of what bash starts of a script."""
    return [words for words, _ in starts_by_bash(text)]


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
            ["set --", "A=3", "B=h100-x", 'C="x y"', "N=0", "R=(1 '2 b' 3)", *body, self.end()]
        )

    def end(self) -> str:
        return 'run --end "$A" "$B" "$C" $N "${R[@]}" "$@" ${D:-none} "${E-}"'

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
            lambda: self.pick(
                "${C^}", "${B@U}", "${B@Q}", '"${R[@]/#/--}"', '"${R[@]%3}"', "${B^^[hx]}"
            ),
            lambda: self.pick('"${@: -1}"', '"${@:1:1}"', "${R[@]:1}", '"${!R[@]}"', "${A}{a,b}"),
            lambda: self.pick(
                "{1..7..3}", "{x,y{1,2}}", "$'\\x41\\101'", '$"say $A"', "pre{01..03}"
            ),
            lambda: self.pick("${R[@]+set}", "${Z[@]-none}", '"${Z[@]:-none}"', "${C/ /-}"),
            lambda: self.pick("$(cat <<< $A)", "$(f() { echo $1; }; f in)", "`echo $A`", '"$(:)"'),
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
            lambda: self.pick("[ -n $E ]", "[ $C = x ]", "[[ $A -eq 3 || -z $C ]]", "test $A"),
            lambda: self.pick("[[ $B =~ -(.) ]]", '[[ $B =~ "h" ]]', "[[ ! -v D ]]", "let A"),
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
            self.strict,
            self.options,
            self.names,
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
            f"export D={self.value()} F=$D",
            "unset 'R[1]'",
            "printf -v 'R[1]' '%s' $A",
            "local E=no 2> /dev/null",
            'readarray -t R <<< "$C"',
            "mapfile -t R < <(echo $A; echo two)",
            'read -n 2 D <<< "$B"',
            "IFS=: read -r D E <<< 'a:b:c'",
            "export -n D",
            "set -a; G=$A; set +a",
            "shift 2 || D=few",
            ": ${D:=given} ${G=also}",
            "[[ $B =~ ([a-z]+)([0-9]*) ]]; E=${BASH_REMATCH[1]}",
            'IFS=,; D="$*"; unset IFS',
            'eval "D_$A=4"; E=$((D_$A))',
            "read -r D <<-'EOF'\n\t$A raw\n\tEOF",
            "eval 'E=$A'",
            "declare -n P=D; P=via; unset -n P",
            "mapfile -t R <<< $'l1\\nl2'",
            f"E=$(echo {self.value()}; echo more)",
            'IFS=- read -r D E <<< "$B"',
            "shopt -s extglob",
        ]
        return self.random.choice(choices)

    def strict(self) -> str:
        """What ends a shell, in one of its own."""
        return self.pick(
            f"( set -e; {self.condition()}; run --strict )",
            f'( set -u; run --a "${self.pick("A", "B", "NONE")}"; run --after )',
            f"( set -eo pipefail; false | true; {self.launch()} )",
            f"( set -e; f_e() {{ {self.condition()}; run --in; }}\n"
            "f_e || run --out; f_e; run --end )",
            f"( set -e; E=$({self.condition()}); run --got )",
            "( : ${NONE:?missing}; run --never )",
            f"( exit {self.number()} ) || D=$?",
            f"( {self.condition()} && exit 3; run --on ); D=$?",
        )

    def options(self) -> str:
        """Options of a command line."""
        reader = self.pick(
            'while [ $# -gt 0 ]; do case "$1" in --*=*) run "${1%%=*}" "${1#*=}"; shift ;; '
            '-?) run --short "$1"; shift ;; *) run --word "$1"; shift ;; esac; done',
            'OPTIND=1; while getopts "ab:c" o; do run "--$o" "${OPTARG-}"; done; '
            'shift $((OPTIND - 1)); run --rest "$@"',
            'OPTIND=1\nwhile getopts ":a:b" o\ndo\n  case $o in\n    a) run --a "$OPTARG" ;;\n'
            '    \\?) run --bad "$OPTARG" ;;\n    :) run --none ;;\n    b) run --b\n  esac\ndone',
        )
        given = self.pick("-a -b 2 x", "-ab2 -c y", "--x=1 -a --y='2 3'", "-b", "-z -- -a", "")
        return f"( set -- {given} {self.value()}\n{reader} )"

    def names(self) -> str:
        """Arrays with keys, and names for names."""
        return self.pick(
            "declare -A M=([x]=1 [long key]=$A); M[z]+=2\n"
            'for k in "${!M[@]}"; do run --$k "${M[$k]}"; done',
            "declare -n P=A; P=5; unset -n P",
            "f_n() { local -n out=$1; out+=(z); }; f_n R",
            'declare -ia J=(1+1 2); J[0]+=3; run --j "${J[@]}"',
            'R=([2]=c [0]=a b); run --r "${!R[@]}" "${R[@]}"',
            'for v in TP PP; do declare "${v}_S=$A"; done; run --v $TP_S ${PP_S}',
            'V=B; run --i "${!V}"; V=\'R[0]\'; run --e "${!V-}"',
            "f_l() { local A=1 D=$A; run --l $A $D; }; f_l",
            "readonly K=1; run --k $K",
        )

    def launch(self) -> str:
        return self.pick(
            f"run --x {self.words()}",
            f"A=7 run --y {self.value()}",
            "A=7 D=$A run --z",
            f"run --bg {self.value()} & wait",
            f"time run --t {self.value()}",
            f"run --a={self.value()} \\\n  --b {self.value()}",
            f"run --w {self.words()} > /dev/null 2>&1",
            f"> /dev/null run --v {self.value()} 2>&1",
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
        body = f"{self.block(2)}\n{leave}\nrun --loop ${variable}"
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
        text = f'{head}\n{local}\n{self.block(2)}\nrun --in {name} $# "$@" $A\n{returns}\n}}'
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
            f'( set -- p q; run --sub "$@"; {self.assignment()} )',
            'echo "a b c" | while read -r x y; do run --piped "$x" "$y"; done',
            'while read -r x; do run --line "$x"; done <<< "$C"',
            'while read -r x; do run --row "$x"; done < <(echo a; echo "$A")',
            'shopt -s lastpipe; echo "$A" | read -r D; shopt -u lastpipe',
            "coproc { A=77; }; wait",
            "select x in a b; do run --chosen $x; break; done <<< 1",
            'while IFS= read -r x; do run --line "$x"; done <<EOF\n1 $A\n2\nEOF',
        )
