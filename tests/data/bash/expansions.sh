# Each part begins with ### and its name, and is a script of its own.
### ${!r} nameref
A=1; declare -n r=A; run ${!r}
### case mod arr
A=(ab cd); run "${A[@]^}" "${A[@]^^}" ${A[@]/a/x} "${A[@]#a}" "${A[@]%d}"
### replace
x=aXbXa; run ${x/#a/b} ${x/%a/b} ${x//X/-} ${x//X} ${x/X/} ${x//[ab]/"q r"}
### replace slash
x=a/b/c; run ${x//\//_} ${x/\/b/} "${x//"/"/-}"
### replace var
x=a.b; y=.; run ${x/$y/-} ${x/"$y"/-} ${x//./\/}
### remove
x=/a/b.c.d; run ${x##*/} ${x#*/} ${x%%.*} ${x%.*} ${x%/*}
### remove q
x="a*b"; run "${x#a"*"}" "${x#a*}" "${x##*[*]}"
### braces step
run {1..10..3} {a..e..2} {10..1..4} {01..03} {-2..2..2}
### braces nest
run {a,b{1,2}}c {x,}y {,} {a} a{b,c}d{e,f}
### braces var
n=3; run {1..$n} {$n,x}
### ansi
run $'a\tb\n' $'\x41\u0042\101\'q' $'\\' $'\e[0m' $'\cA'
### dollar quote
x=1; run $"a $x"
### @Q
x="a b"; run ${x@Q} "${x@Q}"; y="it's"; run "${y@Q}"
### @Q arr
A=(a "b c"); run "${A[@]@Q}" "${A[*]@Q}"
### @U
x=ab; run ${x@U} ${x@u} ${x@L}
### colon eq
: ${A:=1} "${B:=2 3}"; run $A "$B"
### colon q set
A=1; : ${A:?missing}; run b
### default nested
run ${A:-${B:-$((1+2))}} ${A:-"a b"} "${A:-"a b"}" ${A:-a b} "${A:-'q'}"
### default brace
run "${A:-{x}}" ${A:-\}}
### default arr
run "${A[@]:-x}" ${A[@]+"${A[@]}"} ${#A[@]}; A=(); run "${A[@]:-y}"; A=(""); run "${A[@]:-z}" "${A[@]+set}"
### default @
set --; run "${@:-none}" ${1:-x}; set -- a; run "${@:-none}" "${@:+some}"
### assign default
run ${x:=5} $x ${y=6} $y; z=; run ${z=7} "$z" ${z:=8}
### alt
A=1; B=; run ${A:+x} ${A+y} ${B:+x} ${B+y} ${C+z} "${C:+q}"
### alt words
A=1; run ${A:+--flag "a b" c}
### indirect @
set -- a b c; run "${!#}"; i=2; run "${!i}"; run "${!1-none}"
### names
P_A=1 P_B=2; run ${!P_@} "${!P_*}"
### length
x=abc; A=(1 22 333); run ${#x} ${#A} ${#A[2]} ${#A[@]} ${#} ; set -- a b; run ${#@} ${#*} $#
### substr
x=abcdef; run ${x:2} ${x:1:2} ${x: -2} ${x:0:-1} ${x:(-3):2} "${x:9}"; n=2; run ${x:n:n+1} ${x:$n}
### dollar alone
run $ a$ "$" "a $ b" $%
### colon
:; : run x; run y; : $((n=4)); run $n
### dollar star
set -- a b; x=$*; y="$@"; run "$x" "$y" "${*/a/z}" "${@/#/--}"
### upper first
x=hello; run ${x^} "${x^h}" "${x^^[el]}"
### ${x:+--flag $x}
x=4; y=; run ${x:+--x "$x"} ${y:+--y "$y"} ${z:+--z $z}
