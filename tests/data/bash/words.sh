# Each part begins with ### and its name, and is a script of its own.
### alias off
alias run="run x"
run y
### procsub read
while read -r x; do run $x; done < <(echo a; echo b)
### glob none
run *.nosuch
### glob question
run a?b
### glob bracket
run [ab]c x[1]
### noglob
set -f
run *
### glob assign
A=*
run "$A"
### trap -
trap - EXIT
run a
### coproc
coproc { run in; }
wait
run a
### time
time run a
### time -p
time -p run a
### exec redirect
exec 2>&1
run b
### exec -a
run a; exec -a x true
run b
### background
A=1 & wait; run x${A-}; run bg & wait
### background group
{ A=1; run in; } & wait; run x${A-}
### $0
run $0
### $@ in quotes
set -- "a b" c; run "x$@y" "$@" $@ "$*" $*
### $@ empty
set --; run "$@" end; run "x$@"; run ""$@; for a; do run $a; done
### 10th
set -- 1 2 3 4 5 6 7 8 9 x; run $10 ${10}
### FUNCNAME
f() { run $FUNCNAME ${FUNCNAME[0]}; }; f
### subshell var
x=1; (x=2; run $x); run $x; { x=3; }; run $x; x=4 | true; run $x
### lastpipe
shopt -s lastpipe; echo a | read x; run "$x"
### pipe while
n=0; echo a | while read l; do n=5; done; run $n
### |&
run a |& true; run b
### ! pipe
! false | false && run y
### env subst
export A=$(echo 1); run; export B="x $A"; run
### cmd subst newline
x=$(echo a; echo b; echo); run "$x" $x
### cmd subst nested
x=$(echo $(echo `echo a`)); run $x; y=`echo \`echo b\``; run $y
### cmd subst quote
x="$(echo "a  b")"; run "$x"; run $(echo "a  b") "$(echo ')')"
### cmd subst case
x=$(case a in a) echo 1;; esac); run $x
### cmd subst func
f() { echo "$1"; A=9; }; x=$(f 3); run $x ${A-u}
### cmd subst exit
x=$(echo a; exit 3; echo b); run $x $?
### cmd subst <
x=$(</dev/null); run "x$x"
### echo
x=$(echo -n a; echo -e "b\tc"; echo -E "d\t"; echo "e\t"; echo -- x; echo -ne "q\n"); run "$x"
### echo redirect
x=$(echo a >&2; echo b 2>/dev/null; echo c > /dev/null; echo d 1>&2); run "$x"
### exclam
run ! "a!b" !x
### equals
run A=1 --x=2 a==b; A==x; run $A
### string append
S=""; S+=" --a"; S="$S --b"; S="${S} --c \
 --d"; run $S
### string multi
S='
 --a 1
 --b
'; run $S
### exec fd
exec 3>&1 4>/dev/null; exec 5< /dev/null; run a
### ulimit
ulimit -n 1024; umask 022; run b; hash -r; run c
### exit sub
(run a; exit; run b); run c; exit 3; run d
### exit in func
f() { run f; exit; }; f; run x
### and or chain
false && run a || run b; true || run c && run d; true && false || run e
### coproc named
coproc X { :; }; run a
### unquoted star arg
set -- "a b" c; for i in $*; do run $i; done; for i in "$*"; do run "$i"; done
### big braces
A=({0..3}{a,b}); run "${A[@]}"
### eval export
n=FOO; eval "export $n=1"; run $FOO; eval $n=2; run $FOO; eval "A=($n x)"; run "${A[@]}"
### glob pattern words
run --x=[1,2] a[0] "b[*]"
### dash dash
run -- a -b --
