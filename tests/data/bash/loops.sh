# Each part begins with ### and its name, and is a script of its own.
### until
i=0
until [ $i -ge 2 ]; do i=$((i+1)); run $i; done
### break n
for a in 1 2; do for b in 1 2; do [ $b = 2 ] && break 2; run $a $b; done; done; run e
### continue n
for a in 1 2; do for b in 1 2; do [ $b = 2 ] && continue 2; run $a $b; done; done; run e
### break big
for a in 1 2; do break 9; done; run e
### break outside
break; run e
### for args
set -- a b; for x; do run $x; done; for x do run $x; done
### for empty
x=1; for x in; do run no; done; run $x
### for arith
for ((i=0;i<3;i++)) { run $i; }; for ((;;)); do break; done; run $i
### while false
while false; do run x; done; run $?
### while break cond
i=0; while :; do ((++i > 3)) && break; run $i; done; i=0; while true; do i=$((i+1)); if [ $i -eq 2 ]; then continue; fi; [ $i -gt 3 ] && break; run $i; done
### for with glob words
for x in a "b c" $(echo d e) {1..2}; do run "$x"; done; run $x
### seq
for i in $(seq 1 3); do run $i; done; run $(seq 2 2 6)
