"""What is followed is what bash does: construct by construct, and in random scripts of them all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from overlapkit.config.shell.follow import follow_script
from overlapkit.config.shell.grammar.parser import parse_script
from overlapkit.config.shell.state import is_all_arguments
from overlapkit.errors import InputError
from support.property_tests import examples
from support.shell_scripts import BASH, Writer, by_bash, starts, starts_by_bash

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash, to compare with")
ROOT = Path(__file__).parents[4]


def followed(text: str) -> list[list[str]]:
    """What is followed of a script, the program `run` standing for all."""
    started = follow_script(text, "t.sh", {}).started
    rows = [[w.text for w in each.words if not is_all_arguments(w)] for each in started]
    rows = [row for row in rows if row]
    return [row for row in rows if row[0] == "run"]


CONSTRUCTS = {
    "case on lines of its own": """
N=8B
case "$N" in
    "800M")
        TP=1
        ;;
    8B|"70 B")
        TP=4
        ;;
    *)
        exit 1
        ;;
esac
run $TP
""",
    "case that falls through": """
case h100 in
  h100) run a ;&
  b200) run b ;;&
  h*)
    run c
    ;;
  *) run d ;;
esac
""",
    "case with sets and extended patterns": """
shopt -s extglob
for x in h100 b200 9x -; do
  case $x in
    [^a-z]*) run no letter $x ;;
    @(h100|a100)) run old $x ;;
    +([a-z0-9])) run new $x ;;
  esac
done
""",
    "quotes in a heredoc": """
A='x y'
read -r -d '' TEXT <<EOF
bash -c "run \\"$A\\" \\$A \\\\ "
EOF
run "$TEXT"
read -r -d '' TEXT <<-EOF
	"$A" 'a "b" c' \\"quoted\\" \\`none\\`
	EOF
run "$TEXT"
""",
    "a function's variables": """
TP=2
f() {
  local TP=8 PP
  PP=3
  g
  run inside $TP $PP
}
g() { TP=9; }
f
run outside $TP ${PP-unset}
""",
    "assignments before a function": """
TP=2
f() { run in $TP; TP=5; }
TP=8 f
run out $TP
""",
    "a function's status": """
f() { return 1; }
g() { [ "$1" = yes ]; }
f && run no
f || run yes
g yes && run yes
if ! g no; then run no; fi
""",
    "leaving several loops": """
for a in 1 2 3; do
  for b in 1 2 3; do
    [ $b = 2 ] && continue 2
    [ $a = 3 ] && break 2
    run $a $b
  done
done
""",
    "processes keep to themselves": """
TP=2
(TP=4; set -- x; run $TP $#)
echo a | { TP=5; run $TP; }
TP=6 &
wait
run $TP $#
""",
    "a return of the script itself": """
TP=2
if [ "$TP" = 2 ]; then
  return 1
fi
run $TP $?
return 0 2>/dev/null || TP=4
run $TP
f() { return 3; run no; }
f
run $TP $?
""",
    "printf to a variable": """
printf -v TP '%d' 8
printf -v NAME '%s-%03d' x 7
run $TP "$NAME"
""",
    "reading words": """
read -r -a SIZES <<< "1 2 3"
IFS=, read -r A B <<< "4,5,6"
run "${SIZES[1]}" $A "$B"
while IFS='=' read -r key value; do
  run "$key" "$value"
done <<EOF
a=1
b=2=3
EOF
mapfile -t LINES <<< $'x y\nz'
run "${LINES[@]}"
""",
    "an element taken away": """
A=(1 2 3)
unset 'A[1]'
A[5]=6
run "${A[@]}" ${#A[@]} "${!A[@]}" "${A[@]:2:1}"
""",
    "a name for a name": """
TP=2
declare -n R=TP
R=8
run $TP $R
f() { local -n out=$1; out=5; }
f TP
run $TP
""",
    "attributes": """
declare -i N=2
N+=3
N=N*2
declare -u U=abc
declare -l L=ABC
readonly K=1
run $N $U $L $K
""",
    "an associative array": """
declare -A SIZE=([7b]=32 [13b]=40)
SIZE[70b]=80
M=13b
run ${SIZE[$M]} "${SIZE[70b]}" ${#SIZE[@]}
""",
    "arithmetic": """
((A = 1, B = A + 4, A += B))
: $((B *= 2))
let C=B%7 D=~C
run $A $B $C $D $((010 + 0x1f + 2#101)) $((A > 3 ? A : 0)) $((A++ + ++A)) $((1 << 4 | 3 & 6))
run $((2 ** 10)) $((-7 / 2)) $((-7 % 3)) $((A && !B)) $[A + 1] $(( (A == 8) + (B != 3) ))
""",
    "loops that count": """
for ((i = 0, j = 9; i < 3; i++, j--)); do run $i $j; done
for i in {1..3} {a,b}x; do run $i; done
for i in $(seq 2 2 6); do run $i; done
until [ $i -le 0 ]; do ((i -= 3)); done
run $i
""",
    "names and quotes of values": """
A=B
B='it'"'"'s'
Q_1=x Q_2=y
run ${!A} "${B@Q}" "${!Q_@}" ${B^} ${B@U}
""",
    "replacing": """
V=llama3_8b-base
run ${V/a/A} ${V//a/A} ${V/#ll/LL} ${V/%base/chat} ${V//[0-9]/N} ${V/_*-/+} ${V%%-*} ${V: -4}
""",
    "arguments": """
f() {
  run $# "$1" "${@:2}" "${*: -1}" "${!#}"
  shift
  while [[ $# -gt 0 ]]; do
    case "$1" in
      --tp) TP="$2"; shift 2 ;;
      --pp=*) PP="${1#*=}"; shift ;;
      *) shift ;;
    esac
  done
}
f x --tp 4 'a b' --pp=2
run $TP $PP
""",
    "options": """
f() {
  local OPTIND=1
  while getopts "t:p:v" o; do
    case $o in
      t) TP=$OPTARG ;;
      p) PP=$OPTARG ;;
      v) V=1 ;;
    esac
  done
}
f -t 4 -v -p2 rest
run $TP $PP $V
""",
    "what commands print": """
f() { echo "$1-x"; echo note >&2; }
A=$(f 8)
B=`echo in; echo ticks`
C=$(printf '%s,' 1 2 3)
D=$(echo "$(echo nested)" | while read -r x; do echo "<$x>"; done)
E=$(cat <<EOF
text $A
EOF
)
run "$A" "$B" "${C%,}" "$D" $(:)
""",
    "a list in a value": """
ARGS="
    --num-layers 2 \\
    --hidden-size 8
"
ARGS+=" --bf16"
run $ARGS
""",
    "matching": """
V=h100-sxm
[[ $V =~ ^h([0-9]+) ]] && run match
[[ $V == "h*" ]] || run literal
[[ "$V" != *pcie* && ( -n $V || -z $V ) ]] && run both
if [ "$V" = h100-sxm ] && [ ! -z "$V" ]; then run single; fi
""",
    "words that need care": """
A='  two  words '
B=()
run "$A" $A x"$A"y "${B[@]}" "${B[*]}" '' "" ${EMPTY-} "${EMPTY-}"
IFS=,
C=1,2,,3
run $C
""",
    "stopping at a failure": """
set -e
f() { false; }
f || run handled
if f; then run no; fi
[ 1 = 2 ] && run no
run before
false
run never
""",
    "a script in a value": """
export TP=4
PP=2
CMD='run $TP ${PP:-none}'
eval "$CMD"
eval run '"a  b"' '$TP'
""",
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_construct_is_bashs(name: str) -> None:
    text = CONSTRUCTS[name]
    assert by_bash(text)
    assert followed(text) == by_bash(text)


# Each example starts a process, which takes its time on a busy machine.
@examples(200, 2000, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), statements=st.integers(1, 8))
def test_a_random_script_is_bashs_or_what_is_not_known_is_said(seed: int, statements: int) -> None:
    text = Writer(seed, statements).text
    try:
        result = follow_script(text, "t.sh", {})
    except InputError as error:
        # A loop around a value that contains itself.
        assert "grow beyond" in str(error)
        return
    asks = [
        word
        for each in result.started
        for word in (*each.words, *each.environment.values())
        # A variable that nothing sets is empty for bash as well.
        if word.unknown is not None and not word.unknown.unset
    ]
    if not result.notes and not asks:
        assert starts(result) == starts_by_bash(text), text


def parses(text: str) -> bool:
    try:
        parse_script(text, "t.sh")
    except InputError:
        return False
    return True


SCRIPTS = sorted([*(ROOT / "tests/data").rglob("*.sh"), *(ROOT / "examples").rglob("*.sh")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_bash_accepts_is_parsed(path: Path) -> None:
    done = subprocess.run([str(BASH), "-n", str(path)], capture_output=True, check=False)
    assert parses(path.read_text()) or done.returncode != 0


@examples(100, 1000, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_a_random_script_is_parsed(seed: int) -> None:
    text = Writer(seed).text
    done = subprocess.run([str(BASH), "-n", "-c", text], capture_output=True, check=False)
    assert parses(text) or done.returncode != 0
