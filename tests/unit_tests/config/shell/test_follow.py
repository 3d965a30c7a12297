"""A followed script starts what bash would start, and nothing is ever run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from overlapkit.config.shell.follow import Followed, follow_script
from overlapkit.errors import InputError
from support.property_tests import examples
from support.shell_scripts import BASH, by_bash

SCRIPTS = Path(__file__).parents[3] / "data" / "megatron_lm"
needs_bash = pytest.mark.skipif(BASH is None, reason="needs bash, to compare with")


def started(text: str, **given_values: str) -> list[list[str]]:
    """The words of every program that a script would start."""
    followed = follow_script(text, "t.sh", given_values)
    return [[word.text for word in each.words] for each in followed.started]


SNIPPETS = {
    "words": "run a 'b c' \"d e\" f\\ g h\"i\"'j'",
    "scalar splits": 'A="a  b\tc"; run $A "$A" x${A}y',
    "empty words": 'A=; run $A "$A" \'\' ""',
    "braces": "A=x; run ${A}y $A-z ${A}_1",
    "default": 'run ${A:-d} ${A-e} "${B:-f g}" ${B:-f g}',
    "default of empty": "A=; run x${A:-d} x${A-e}",
    "nested defaults": 'C=3; run ${A:-${B:-${C:-4}}} "${A:-"${B:-x y}"}"',
    "assigning default": "run ${A:=5} $A; : ${B:=6}; run $B",
    "alternative": "A=1; run ${A:+yes} x${B:+no}",
    "length": "A=hello; B=(1 2 3); run ${#A} ${#B[@]}",
    "cut": "A=a/b/c.tar.gz; run ${A##*/} ${A#*/} ${A%.*} ${A%%.*}",
    "case": "A=AbC; run ${A,,} ${A^^}",
    "indirect": "A=B; B=7; run ${!A}",
    "array": 'A=(1 "2 3" 4); run ${A[@]} "${A[@]}" "${A[*]}" $A ${A[1]} "${A[1]}"',
    "array grows": 'A=(1); A+=(2 3); A+=("4 5"); run "${A[@]}"',
    "array in array": 'A=(1 2); B=(0 "${A[@]}" 3); run "${B[@]}"',
    "array element": "A=(1 2 3); A[1]=x; run ${A[@]}",
    "array over lines": "A=(\n  1 # one\n  2\n\n  # nothing\n  3\n)\nrun ${A[@]}",
    "empty array": 'A=(); run x "${A[@]}" y',
    "append": 'A=a; A+=b; A+=" c"; run "$A"',
    "continued": "run a \\\n  b \\\n  c",
    "string continued": 'A="--x 1 \\\n --y 2"; run $A; run "$A"',
    "string over lines": 'A="\n--x 1\n--y 2\n"; run $A',
    "single quotes": "run 'a\\b $A'",
    "dollar quote": "run $'a\\tb' $'it\\'s'",
    "escapes": 'A=x; run "a\\"b" "\\$A" \\$A "a\\b"',
    "arithmetic": "A=3; B=8; run $((A*B)) $(($A + ${B})) $(( (A+1)/2 )) $((-7/2)) $((7%4))",
    "arithmetic nested": "A=2; B=$((A*4)); C=$((B*16)); run $C",
    "comparison": "run $((3>2)) $((2==3))",
    "octal and hex": "run $((010 + 0x10))",
    "comment": "run a#b # c\nrun d",
    "semicolons": "A=1;B=2;run $A $B",
    "and or": 'A=1 && run $A; [ -z "$A" ] && run no; [ -n "$A" ] || run no; run end',
    "if": 'A=2; if [ "$A" -gt 1 ]; then run big; else run small; fi',
    "elif": "A=b; if [[ $A == a ]]; then run a; elif [[ $A == b ]]; then run b; else run c; fi",
    "test operators": 'A=5; [ "$A" = 5 -a "$A" != 6 ] && run a; [[ $A -lt 9 && ! -z $A ]] && run b',
    "pattern": "A=h100-sxm; if [[ $A == h100* ]]; then run yes; fi",
    "unset is empty": 'if [ -z "$NOTHING" ]; then run empty; fi; [[ -v NOTHING ]] || run unset',
    "case branches": "A=b2; case $A in a) run a;; b*|c) run b ;; *) run other;; esac",
    "case default": 'case "$NOTHING" in x) run x;; *) run other; esac',
    "function": 'f() { local X=$1; run $X "$2" $#; }; f a "b c"; function g { run g; }; g',
    "function sets": "f() { A=5; }; f; run $A",
    "return": "f() { run a; return; run b; }; f; run c",
    "positional": 'set -- a "b c" d; run "$@" $# $1; shift; run "$*"',
    "subshell": "A=1; (A=2; run $A); run $A",
    "group": "{ A=2; run $A; }; run $A",
    "heredoc read": "A=5\nread -r -d '' B <<EOF\nx $A\ny\nEOF\nrun $B; run \"$B\"",
    "heredoc quoted": "A=5\nread -r -d '' B <<'EOF'\nx $A\nEOF\nrun $B",
    "heredoc tabs": "read -r -d '' B <<-EOF\n\tx\n\ty\n\tEOF\nrun $B",
    "heredoc then more": "read B <<EOF; run first\nx y\nEOF\nrun $B",
    "lines of commands": "mapfile -t A < <(printf '%s\\n' a 'b c'); run \"${A[@]}\" ${#A[@]}",
    "no lines of commands": 'mapfile -t A < <(true); run "${A[@]}" ${#A[@]}',
    "a loop over commands": (
        "N=0; while IFS== read -r K V; do N=$((N+1)); run $K $V; done "
        "< <(echo x=1; echo 'y=2 3'); run $N"
    ),
    "read of commands": 'read -r A B < <(echo one two three); run "$A" "$B"',
    "matched parts": (
        'A=m_7b_tp4; [[ $A =~ _([0-9]+)b_tp([0-9]+) ]] && run "${BASH_REMATCH[@]}" '
        "${BASH_REMATCH[2]}; [[ v1.2 =~ ^v([0-9]+)\\.([0-9]) ]]; run ${BASH_REMATCH[1]}; "
        '[[ $A =~ (x) ]] || run none "${BASH_REMATCH[1]-}"; [[ $A =~ "b_t" ]] && run quoted'
    ),
    "quoted for a shell": (
        'A=(--x "a b" "(0,1)" \'$y\' ""); B=$(printf " %q" "${A[@]}"); run "$B"; eval "run $B"'
    ),
    "herestring": 'A="x y"; read B <<< "$A"; run $B',
    "eval": "A=\"run a 'b c'\"; eval $A",
    "export": 'export A=1 B="2 3"; run $A "$B"; export "C=4"; run $C',
    "declare": "declare -i A=3; readonly B=4; run $A $B",
    "counting": "(( A = 3 * 4 )); run $A; if (( A > 10 )); then run yes; fi",
    "negation": "if ! [ 1 = 2 ]; then run yes; fi",
    "loops": "for i in x 'y z'; do run $i \"$i\"; done; run $i",
    "loop over an array": 'A=(1 2); B=(); for a in "${A[@]}"; do B+=(--x $a); done; run "${B[@]}"',
    "loop to a break": "for i in 1 2 3; do if [ $i = 2 ]; then break; fi; run $i; done",
    "loop that goes on": "for i in 1 2 3; do [ $i = 2 ] && continue; run $i; done",
    "counted loop": "i=0; while [ $i -lt 3 ]; do run $i; i=$((i+1)); done",
    "a change": 'V=llama3_8b; run ${V/_/-} ${V//l/L} ${V/3} ${V/_//} "${V/8b/70 b}" ${V/x/y}',
    "an element by a variable": "i=1; A=(a b); A[$i]=c; A[i+1]=d; run ${A[@]} ${A[$i]}",
    "a part": "V=abcdef; run ${V:2} ${V:1:3} ${V: 4} ${V:9}; A=(1 2 3); run ${A[@]:1} ${A[1]:0:1}",
    "a part of the arguments": 'f() { run "${@:2}" "${@:1:1}"; }; f a "b c" d',
    "counted up": "i=0; ((i++)); ((i+=2)); ((++i)); ((i*=3)); ((i--)); run $i; ((i%=4)); run $i",
    "counted from nothing": "i=0; ((i++)) || run first; ((i++)) && run $i; let i+=5 j=2 'k=i*j'; "
    "run $i $j $k",
    "counted loop with a sign": "i=0; while ((i < 3)); do run $i; ((i++)); done",
    "until": "i=0; until [[ $i -ge 2 ]]; do run $i; (( i = i + 1 )); done",
    "options": "set -- --tp 4 --x 8B; while [[ $# -gt 0 ]]; do case $1 in --tp) TP=$2; shift 2;; "
    "*) break;; esac; done; run $TP $1",
    "exit": "run a; exit 0; run b",
    "unset": "A=1; unset A; run x$A",
    "odd names": 'A_1=x; run "${A_1}y" $A_1',
    "tilde stays": "A='~'; run \"$A\"",
    "carriage free": "run a\nrun b\n",
    "backslash in quotes": 'run "a\\nb"',
    "star": 'A="*"; run "$A"',
    "dash words": "A=--x; run $A=1 --y=$A",
}


@needs_bash
@pytest.mark.parametrize("name", SNIPPETS)
def test_words_are_bashs(name: str) -> None:
    text = SNIPPETS[name]
    assert [row for row in started(text) if row[0] == "run"] == by_bash(text)


def test_redirections_and_pipes_are_no_words() -> None:
    text = "run a > /dev/null; run b 2>/dev/null; run c >/x 2>&1; run d 2>&1 | tee x &> y & run e"
    assert started(text) == [["run", c] for c in "abcd"] + [["tee", "x"], ["run", "e"]]


WORDS = st.text("ab 'x", max_size=5).map(lambda s: s.replace("'", ""))
OPERATORS = st.sampled_from(["$A", '"$A"', "${B:-$A}", '"${B:-$A}"', "${C[@]}", '"${C[@]}"', "x"])


# Each example starts a process, which takes its time on a busy machine.
FEW = examples(40, 400, suppress_health_check=[HealthCheck.too_slow])


@needs_bash
@FEW
@given(a=WORDS, c=st.lists(WORDS, max_size=3), words=st.lists(OPERATORS, min_size=1, max_size=4))
def test_any_expansion_is_bashs(a: str, c: list[str], words: list[str]) -> None:
    fields = " ".join(f"'{word}'" for word in c)
    text = f"A='{a}'; C=({fields}); run {' '.join(words)}; run {''.join(words)}"
    assert started(text) == by_bash(text)


@needs_bash
@FEW
@given(
    numbers=st.lists(st.integers(0, 99), min_size=2, max_size=5),
    signs=st.lists(st.sampled_from("+-*/%"), min_size=4, max_size=4),
)
def test_any_arithmetic_is_bashs(numbers: list[int], signs: list[str]) -> None:
    expression = str(numbers[0])
    for sign, number in zip(signs, numbers[1:], strict=False):
        expression += f" {sign} {number or 1}"
    assert started(f"run $(({expression}))") == by_bash(f"run $(({expression}))")


NEVER = [
    "A=$(touch {0}); run $A",
    "A=`touch {0}`; run $A",
    "touch {0}",
    'eval "touch {0}"',
    "run <(touch {0})",
    "cat <<EOF\n$(touch {0})\nEOF",
    "f() {{ touch {0}; }}; f",
    "(( A = $(touch {0}) ))",
    "A=$(( $(touch {0}) + 1 ))",
    "run > {0}",
    "[ -f $(touch {0}) ] && run",
    "trap 'touch {0}' EXIT",
    "run ${{A:-$(touch {0})}}",
    "bash -c 'touch {0}; torchrun pretrain_gpt.py --num-layers 2'",
]


@pytest.mark.parametrize("text", NEVER)
def test_nothing_is_run(text: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    follow_script(text.format(target), "t.sh", {})
    assert not target.exists()


def unknown_of(text: str) -> tuple[str | None, str]:
    """Which variable the last word of the last program lacks, and why."""
    word = follow_script(text, "t.sh", {}).started[-1].words[-1]
    assert word.unknown is not None
    return word.unknown.name, word.unknown.why


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run $A", "A"),
        ("A=$B; run $A", "B"),
        ("A=$(date); run $A", "A"),
        ("A=`date`; B=$A; run --x=$B", "A"),
        ("A=$((B * 8)); run $A", "B"),
        ("A=$(nproc); B=$((A * 8)); run $B", "A"),
        ("A=${B:-$(date)}; run $A", "A"),
        ("read A; run $A", "A"),
        ("run ${A[@]}", "A"),
        ("run $(date)", None),
        ("run $1", "1"),
    ],
)
def test_an_unknown_value_names_the_variable_to_give(text: str, name: str | None) -> None:
    found, why = unknown_of(text)
    assert found == name and why


def test_given_values_win_and_that_is_told() -> None:
    followed = follow_script("A=1\nB=${B:-2}\nrun $A $B $C", "t.sh", {"A": "9", "C": "7"})
    assert [w.text for w in followed.started[0].words] == ["run", "9", "2", "7"]
    assert followed.notes == ["t.sh:1: A=9 as given, instead of '1'"]
    assert started("run $2 $1 $# $@", **{"1": "a", "2": "b"}) == [["run", "b", "a", "2", "a", "b"]]


def test_lines_are_those_of_the_words() -> None:
    text = 'A=(\n  --x 1\n  --y 2\n)\nB="--z 3 \\\n  --w 4"\nrun "${A[@]}" $B\n'
    words = follow_script(text, "t.sh", {}).started[0].words
    lines = {word.text: word.line for word in words}
    assert lines == {"run": 7, "--x": 2, "1": 2, "--y": 3, "2": 3, "--z": 5, "3": 5} | {
        "--w": 6,
        "4": 6,
    }


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("export A=1\nrun", {"A": "1"}),
        ("A=1\nexport A\nrun", {"A": "1"}),
        ("A=1\nrun", {}),
        ("A=1 run", {"A": "1"}),
        ("export A=1\nA=2 run", {"A": "2"}),
        ("export A=1\nunset A\nrun", {}),
        ("set -a\nA=1\nset +a\nB=2\nrun", {"A": "1"}),
        ("declare -x A=1\nrun", {"A": "1"}),
        ("export A=1\nexport -n A\nrun", {}),
        ("f() { export A=1; }\nf\nrun", {"A": "1"}),
        ("(export A=1)\nrun", {}),
    ],
)
def test_what_is_exported(text: str, seen: dict[str, str]) -> None:
    program = follow_script(text, "t.sh", {}).started[-1]
    assert {name: value.text for name, value in program.environment.items()} == seen


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("if [ -f x ]; then A=1; fi", "t.sh:1: whether '[ -f x ]' holds is not known"),
        ("run\n[ -f x ] && A=1", "t.sh:2: whether this test holds is not known: taken as false"),
        ("[[ -d x ]] || export A=1", "t.sh:1: whether this test holds is not known"),
        ("source env.sh", "t.sh:1: env.sh is not read"),
        (". ./env.sh", "t.sh:1: ./env.sh is not read"),
        ("while read x; do A=1; done", "t.sh:1: the loop 'while read x' is followed once"),
        (
            "for i in 1 2; do python x.py --n $i; done",
            "t.sh:1: the loop 'for i in 1 2' is followed once, with i=1",
        ),
        (
            "while true; do A=1; done",
            "t.sh:1: the loop 'while true' is followed for 200 rounds only",
        ),
        ("for i in $(ls); do A=$i; done", "t.sh:1: the loop 'for i in $(ls)' is followed once"),
        ("case $(uname) in Linux) A=1;; esac", "t.sh:1: which branch of this case"),
    ],
)
def test_what_is_assumed_is_told(text: str, told: str) -> None:
    (note,) = follow_script(text, "t.sh", {}).notes
    assert note.startswith(told)


def test_an_unknown_test_is_false_and_an_unknown_program_succeeds() -> None:
    assert started("[ -f x ] && run a; [ -f x ] || run b; make && run c; make || run d") == [
        ["run", "b"],
        ["make"],
        ["run", "c"],
        ["make"],
    ]


def test_a_loop_that_restarts_a_job_starts_it_once() -> None:
    text = "while [ 1 = 1 ]; do python x.py; done; run"
    assert started(text) == [["python", "x.py"], ["run"]]


def test_what_cannot_matter_is_not_told() -> None:
    text = 'if [ ! -d "$X" ]; then mkdir -p "$X"; fi\nwhile sleep 1; do date; done\n'
    text += "[ -d x ] || mkdir x; cd y || exit 1"
    assert follow_script(text, "t.sh", {}).notes == []


BROKEN = {
    "a quote": ('A="x', ":1:", '"'),
    "a single quote": ("\nrun 'x", ":2:", "'"),
    "an expansion": ("run ${A", ":1:", "{"),
    "a substitution": ("run $(date", ":1:", "("),
    "an array": ("\n\nA=(1 2", ":3:", "A=("),
    "an if": ("if [ 1 = 1 ]; then run", ":1:", "fi"),
    "a stray fi": ("run\nfi", ":2:", "'fi'"),
    "a heredoc": ("cat <<EOF\nx\n", "t.sh:", "EOF"),
    "a group": ("{ run", ":1:", "}"),
    "a subshell": ("( run", ":1:", "')'"),
    "deep subshells": ("( " * 5000, ":1:", "too deeply"),
    "deep defaults": ("run " + "${A:-" * 5000, ":1:", "too deeply"),
    "deep quotes": ('run "' + '${A:-"' * 2000, ":1:", "too deeply"),
    "endless calls": ("f() { f; }; f", ":1:", "without end"),
    "calls to each other": ("f() { g; }; g() { f; }; f", ":1:", "without end"),
    "doubling": ("A=aaaaaaaaaa\n" + "A=$A$A\n" * 60 + "run $A", "t.sh:", "grow beyond"),
    "doubling in a loop": ("A=x; while true; do A=$A$A; done; run $A", "t.sh:", "grow beyond"),
    "doubling lines": ("A='x\ny'\n" + "A=$A$A\n" * 60 + "run $A", "t.sh:", "grow beyond"),
    "doubling arguments": ('f() { f "$@" "$@"; }; f a b', "t.sh:", "grow beyond"),
    "doubling arrays": ("A=(a b c d)\n" + 'A=("${A[@]}" "${A[@]}")\n' * 60, "t.sh:", "grow beyond"),
    "endless loops": (
        "while true; do while [ 1 = 1 ]; do A=1; done; done",
        "t.sh:",
        "more commands",
    ),
    "a far index": ("A[9999999]=1; A[99999]=1; run", ":1:", "beyond any array"),
    "branching calls": (
        "".join(f"f{n}() {{ f{n + 1}; f{n + 1}; }}\n" for n in range(18)) + "f18() { A=1; }\nf0",
        "t.sh:",
        "more commands",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_script_is_told(name: str) -> None:
    text, where, what = BROKEN[name]
    began = time.process_time()
    with pytest.raises(InputError) as error:
        follow_script(text, "t.sh", {})
    assert where in str(error.value) and what in str(error.value)
    # Not a measure of speed: an endless or exponential reading would take minutes.
    assert time.process_time() - began < 20


def test_a_long_value_is_searched_for_a_command_once() -> None:
    began = time.process_time()
    follow_script(f"srun bash -c '{'a.py ' * 40_000}'", "t.sh", {})
    assert time.process_time() - began < 20


@given(st.text("ab $(){}[]\"'`\\\n;&|<>=#!*?~-+0:", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        result: Followed = follow_script(text, "t.sh", {})
    except InputError as error:
        assert "t.sh" in str(error)
    else:
        assert isinstance(result.started, list)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.stem)
def test_cut_off_anywhere_it_is_read_or_refused(path: Path) -> None:
    text = path.read_text()
    for end in range(0, len(text), 37):
        try:
            follow_script(text[:end], "t.sh", {})
        except InputError as error:
            assert str(error).startswith("t.sh")
