# Each part begins with ### and its name, and is a script of its own.
### set -u default
set -u
X=${FOO:-1}
run b $X
### set -u array
set -u
A=()
run "${A[@]}"
run ${#A[@]}
### set -eu pipefail
set -euo pipefail
run a
false | true
run b
### pipefail2
set -e
false | true
run a
set -o pipefail
false | true
run b
### pipefail3
set -eo pipefail
if false | true; then run y; else run n; fi
### set -e local subst
set -e
f() { local X=$(false); run in; }
f
run out
### set -e and
set -e
false && true
run out
### set -e not
set -e
! true
run out
### set +e
set -e
set +e
false
run x
### set -- sub
set -- a b; (set -- c; run $#); run $#; f() { set -- x y z; run $#; }; f; run $#
### set - args
set a b; run $1; set -- ; run $#
### set -- dash
set -- -e -x; run "$@"; set -e -- -x; run "$@"
### set options
set -x; run a; set +x; set -euo pipefail; run b; set +euo pipefail; set -o xtrace; set +o xtrace; run c
### set -n
run a; set -n; run b
### set -o
set -o pipefail -e; run a; false; run b
### errexit in subshell cond
set -e; (false; run in) || run n; run out
### errexit cmd subst
set -e; run "$(false)"; run x; y=$(false; echo z); run "$y"
### errexit export
set -e; export X=$(false); run x; X=$(false); run y
### errexit arith assign
set -e; x=$((1-1)); run x; let x=1; run y; ((x-1)); run z
### errexit until
set -e; i=0; until [ $i = 1 ]; do i=1; done; while false; do :; done; run ok
