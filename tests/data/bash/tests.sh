# Each part begins with ### and its name, and is a script of its own.
### rematch
[[ h100-80 =~ ^h([0-9]+)-([0-9]+)$ ]] && run "${BASH_REMATCH[0]}" "${BASH_REMATCH[1]}" ${BASH_REMATCH[2]}
### rematch fail
[[ abc =~ x ]]; run "${#BASH_REMATCH[@]}"
### rematch var
re="^[a-z]+_([0-9]+)b"; [[ llama_70b =~ $re ]] && run ${BASH_REMATCH[1]}
### rematch quoted
[[ "a.b" =~ "." ]] && run y; [[ ab =~ "a." ]] || run n
### rematch alt
[[ foo =~ ^(foo|bar)$ ]] && run ${BASH_REMATCH[1]}
### rematch repeat
[[ aabb =~ (a+)(b{2}) ]] && run ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}
### extglob
shopt -s extglob
x=foo.tar.gz
run ${x%%.@(tar|zip)*} ${x/+(o)/0} ${x##*(f)}
[[ foo == !(bar) ]] && run y
### extglob case
shopt -s extglob
case 123 in +([0-9])) run num;; esac
### extglob off
x=aab; run ${x##+(a)}
### cond -a
[ 1 = 1 -a 2 = 2 ] && run y; [ 1 = 2 -o 2 = 2 ] && run z; [ ! 1 = 2 ] && run w; [ \( 1 = 1 \) ] && run v
### cond <
[[ a < b ]] && run y; [ b \> a ] && run z
### cond -eq expr
[[ 1+1 -eq 2 ]] && run y; x=3; [[ x -gt 2 ]] && run z
### cond -v
x=1; [[ -v x ]] && run y; [[ -v z ]] || run n; A=(1); [[ -v A[0] ]] && run e; [ -v x ] && run q
### cond -n none
[ -n $U ] && run weird; [ -z $U ] && run z; [ $U ] || run n; [ ] || run m
### cond err
[ a -eq 1 ] && run y || run n; [ "" -eq 0 ] && run y || run n
### cond -o opt
set -e; [[ -o errexit ]] && run y; set +e; [[ -o errexit ]] || run n
### cond -R
declare -n r=A; [[ -R r ]] && run y
### cond -t
[ -t 1 ] && run y || run n
### cond glob q
x=abc; [[ $x == a* ]] && run 1; [[ $x == "a*" ]] || run 2; p="a*"; [[ $x == $p ]] && run 3; [[ $x == "$p" ]] || run 4; [ $x = a* ] || run 5
### cond not
[[ ! a == b ]] && run 1; [[ a == b || c == c && d == d ]] && run 2; [[ ( a == b ) || ! ( c == d ) ]] && run 3
### test cmd
test 1 -lt 2 && run y; test -z "" && run z; test "a" && run a; test "" || run b
### if layouts
if true
then
run a
elif false; then run b
else run c
fi
if ! false; then :; fi; if true; then run d; fi; if (true) then run e; fi; if { true; } then run f; fi
### if &&
if [ 1 = 1 ] && [ 2 = 3 ] || [ 4 = 4 ]; then run y; fi; if true && ! false; then run z; fi
### string cmp num
[ "08" -eq 8 ] && run y; [[ 08 -eq 8 ]] && run z || run n; [ " 5 " -eq 5 ] && run q
### test -z arr
A=(); [ -z "${A[*]}" ] && run e; [ ${#A[@]} -eq 0 ] && run z; [[ -n ${A[0]} ]] || run n
### bool func
is() { [[ $1 == yes ]]; }; is yes && F=--f; is no || G=--g; run $F $G
### string contains
s=llama3-70b; if [[ $s == *70b* ]]; then run big; fi; case $s in *8b*) run small;; *70b*) run big;; esac; [[ ${s,,} =~ 70b ]] && run re
