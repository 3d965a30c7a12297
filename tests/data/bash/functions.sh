# Each part begins with ### and its name, and is a script of its own.
### local -n
f() { local -n r=$1; r+=" x"; }
A=1
f A
run "$A"
### local -n arr
f() { local -n r=$1; r+=(x); r[0]=9; run "${r[@]}" ${#r[@]}; }
A=(1 2)
f A
run "${A[@]}"
### nameref loop
declare -n r
A=1 B=2
for r in A B; do run $r; done
### nameref assoc
declare -A M=([x]=1); declare -n r=M; r[y]=2; run ${M[y]} ${!r[@]}
### printf -v arr
printf -v 'a[1]' '%s' x
run "${a[@]}" ${!a[@]}
### printf -v assoc
declare -A M; printf -v 'M[k]' '%d' 3; run ${M[k]}
### printf fmts
printf -v X '%5.2f|%-4s|%04d|%x|%o|%e|%s' 3.14159 ab 7 255 8 1.5 z; run "$X"
### printf %q
printf -v X '%q ' 'a b' "it's" ''; run "$X"
### printf rep
printf -v X '%s=%s,' a 1 b 2 c; run "$X"
### printf esc
printf -v X 'a\tb\x41\101'; run "$X"
### printf hex
printf -v X '%d %d' 0x10 010; run "$X"
### printf char
printf -v X '%d' "'A"; run "$X"
### prefix func
f() { run "$A"; }
A=1 f
run ${A-none}
### prefix func export
f() { g; }
g() { run "$A"; }
B=2 A=$B f
run ${A-none} ${B-none}
### prefix builtin
A=1 eval "run \$A"
run ${A-none}
### prefix export
A=1 export B=2
run ${A-none} $B
### prefix order
A=1
A=2 run $A
### prefix ifs
IFS=, read -r a b <<< "1,2"; X="a,b c"; run $X $a $b
### func args
f() { run $# "$@"; shift; run "$@"; g "$@" z; run "$1"; }; g() { run "$2"; }; f a b c
### declare -u
declare -u x=ab; x+=cd; run $x; declare -l y=AB; run $y; declare +u x; x=ef; run $x
### declare -x
declare -x A=1; typeset -x B=2; declare +x A; run
### declare -g
f() { declare -g A=1; declare B=2; }; f; run $A ${B-u}
### declare list
declare A=1 B C=3; run $A ${B-u} $C
### declare quoted
x="A=5"; declare "$x"; run $A; declare "B$((1))=7"; run $B1; n=Q; declare $n=3; declare "$n"x=4; run $Q $Qx; export "$n"y=6; run $Qy
### declare dyn arr
n=A; declare -a "$n=(1 2)"; run "${A[@]}"
### declare arr
declare -a A=(1 2); declare -a B; B+=(3); run "${A[@]}" "${B[@]}"; declare C=(x y); run "${C[1]}"
### local
A=1; f() { local A; run "${A-u}"; A=2; g; }; g() { run $A; A=3; }; f; run $A
### local arr
f() { local -a A=(1 2); local B=(3); A+=(4); run "${A[@]}" "${B[@]}"; }; f; run "${A[@]-none}"
### local inherit
A=1; f() { local A=$A; A+=2; run $A; }; f; run $A
### local export
f() { local A=1; export A; run; }; f; run
### local -
set -e; f() { local -; set +e; false; run in; }; f; run out
### unset
A=1; B=2; unset A B; run ${A-u} ${B-u}; f() { :; }; unset -f f; f; run x; C=(1 2 3); unset C[1]; run "${C[@]}"; unset C; run "${C[@]-none}"
### unset local
A=1; f() { local A=2; unset A; run ${A-u}; }; f; run $A
### unset func local
A=1; f() { local A=2; g; run ${A-u}; }; g() { unset A; run ${A-u}; }; f; run $A
### unset readonly
readonly A=1; unset A; run $A
### export
export A=1 B; B=2; run; export -n A; run; C=3; export C; C=4; run; unset C; run
### export append
export A=1; A+=2; run; export A+=3; run
### export in sub
(export A=1; run); run; { export B=1; }; run
### export func
f() { :; }; export -f f; run a
### export empty
export A=; run; export B; run
### allexport
set -a; A=1; B=(1); for i in 1; do :; done; set +a; C=2; run
### allexport read
set -a; read X <<< 5; printf -v Y 6; ((Z=7)); set +a; run
### func layouts
f() { run f; }
function g { run g; }
function h() { run h; }
i () {
run i
}
j()
{
run j; }
k() (run k)
l() if true; then run l; fi
f;g;h;i;j;k;l
function m() for x in 1; do run m; done
m; function my-func.x { run my; }; my-func.x
### func redefine
f() { run 1; }; f; f() { run 2; }; f
### func nested
f() { g() { run g; }; }; f; g
### func recursion
f() { [ $1 -le 0 ] && return; run $1; f $(($1-1)); }; f 3
### func return in loop
f() { for i in 1 2 3; do [ $i = 2 ] && return 5; run $i; done; }; f; run $?
### func exit sub
(exit 3); run $?; f() { exit 2; }; (f); run $?; f; run never
### printf stdout
x=$(printf "%s\n" a b); run "$x"
### nested quotes
x="a"; run "$(echo "$(echo "$x b")")" "${x:-"$(echo q)"}"
### nested loop fn
f() { for i in 1 2; do g $i; done; }; g() { for j in a b; do run $1 $j; done; }; f
### typeset
typeset -i x=3+4; typeset y=a; run $x $y; f() { typeset z=1; }; f; run ${z-u}
### function vars global
f() { X=1; export Y=2; }; f; run $X
### prefix multiple
A=1 B=$A C=2 run x
### prefix persists
A=1 : ; run ${A-u}; A=1 eval true; run ${A-u}
### prefix no cmd
A=1 B=2; run $A $B; A=3 B=$A; run $B
### prefix each
A=(a b); run "${A[@]/#/--}" "${A[@]/%/=1}"
### printf join
A=(a b c); printf -v S ",%s" "${A[@]}"; run "${S:1}"; S=$(IFS=,; echo "${A[*]}"); run "$S"
### dyn flags
for v in TP PP; do n="${v}_SIZE"; declare "$n=2"; done; run $TP_SIZE ${PP_SIZE}
