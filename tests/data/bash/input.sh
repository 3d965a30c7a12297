# Each part begins with ### and its name, and is a script of its own.
### getopts
set -- -a -b val rest
while getopts "ab:c" o; do case $o in a) run A;; b) run B $OPTARG;; esac; done
shift $((OPTIND-1))
run "$@"
### getopts combined
set -- -ab val -cx rest
while getopts "ab:c:" o; do case $o in a) run A;; b) run B $OPTARG;; c) run C $OPTARG;; esac; done
shift $((OPTIND-1))
run "$@"
### getopts bad
set -- -z -a
while getopts "a" o; do run "$o"; done
### getopts silent
set -- -z -b
while getopts ":ab:" o; do run "$o" "$OPTARG"; done
### getopts --
set -- -a -- -b
while getopts "ab" o; do run "$o"; done; shift $((OPTIND-1)); run "$@"
### getopts fn
f() { local OPTIND o; while getopts "t:p:" o; do run $o $OPTARG; done; }
f -t 4 -p 2
f -p 1
### shift n
set -- a b c d
shift 2
run "$@"
shift 5 || run fail $#
### shift var
set -- a b c d
n=3
shift $n
run "$@"
### IFS
set --
IFS=:
A=a:b::c
run $A
IFS=" ,"
B="a , b,,c "
run $B "$*"
### IFS star
set -- a b c
IFS=,
run "$*" "${*:2}"
A=(x y)
run "${A[*]}"
### IFS empty
IFS=
A="a b"
run $A
set -- x y
run $* "$*"
### IFS unset
IFS=,; unset IFS; A="a b,c"; run $A; set -- x y; run "$*"
### IFS local
f() { local IFS=,; echo "$*"; }
X=$(f a b c)
run "$X"
### IFS for
IFS=,
for x in a,b $Y; do run $x; done; Z=c,d; for x in $Z; do run $x; done
### heredoc var
read -r -d "" X <<EOF
a
 b
EOF
run "$X"
### heredoc subst
X=$(cat <<EOF
hello $((2*3))
EOF
)
run "$X"
### herestring
read -r a b <<< "x y z"; run "$a" "$b"
### herestring multi
read -r a b <<< $'x y\nz'; run "$a" "$b"
### read -n
read -n 2 x <<< abcd; run $x
### read -N
read -N 3 x <<< abcd; run $x
### read -p
read -p "? " x <<< 4; run $x
### read ifs
IFS=: read -r a b c <<< "1:2:3:4"; run "$a" "$b" "$c"
### read trailing
read -r a b <<< "  x   y  "; run "$a" "$b"; IFS= read -r c <<< "  x "; run "$c"
### read backslash
read a <<< "x\ty"; run "$a"; read -r a <<< "x\ty"; run "$a"
### read array
read -ra A <<< "a b c"; run "${A[1]}" ${#A[@]}; IFS=, read -a B <<< "1,2,,3,"; run "${B[@]}" ${#B[@]}
### read multiple
{ read a; read b; } <<< $'1\n2'; run $a $b
### read status
read x <<< "" && run ok; read x < /dev/null || run eof
### read unset
unset x; read -r x y <<< "1"; run "$x" "${y-unset}"
### while read
while read -r a b; do run $a $b; done <<EOF
1 2
3 4
EOF
### heredoc in func
f() {
read -r -d "" X <<-EOF
	a b
	c $1
	EOF
}
f z
run "$X"
### heredoc in loop
for i in 1 2; do
read -r X <<EOF
v$i
EOF
run $X
done
### heredoc pipe
read -r X <<EOF && run "$X"
abc
EOF
### heredoc no newline end
read -r X <<EOF
abc
EOF
run $X
### heredoc array
mapfile -t A <<'EOF'
a b
c
EOF
run "${A[@]}"
### opt arg parse
set -- --tp=4 --pp 2 -x file; while [ $# -gt 0 ]; do case "$1" in --*=*) n=${1%%=*}; v=${1#*=}; run "${n#--}" $v; shift;; --*) run "${1#--}" "$2"; shift 2;; -?) run short ${1#-}; shift;; *) run pos "$1"; shift;; esac; done
