# Each part begins with ### and its name, and is a script of its own.
### let ret
let a=0 && run y || run n
### arith ops
run $((5/2)) $((-5/2)) $((5%-3)) $((2**3**2)) $((1<<3)) $((7&3|8)) $((~0)) $((!0)) $((1?2:3)) $((1,2)) $((x=3)) $((x+=2)) $x
### arith str
a="1+2"; run $((a*2)) $(($a*2))
### arith arr
A=(1 2 3); run $((A[1]+A[2])) $((${A[0]}+1)); ((A[1]++)); run ${A[1]}; ((A[1]=7)); run ${A[@]}
### arith inc
i=5; run $((i++)) $i $((++i)) $i $((i--)) $i $((--i))
### arith overflow
run $((9223372036854775807+1)) $((1<<63))
### arith nested
run $(( (1+2)*$((3+4)) )) $(( $(echo 3) + 1 ))
### (( )) status
((0)) || run n; ((5)) && run y; ((x=0)) || run z; if ((3>2)); then run t; fi
### let multi
let i=1 "j = i + 1" k=j**2; run $i $j $k; let i++; let "i += 5"; run $i
### ternary chain
x=5; y=$(( x > 3 ? x < 10 ? 1 : 2 : 3 )); run $y; z=$([ $x -gt 3 ] && echo big || echo small); run $z
### arith test in cond
N=8; if (( N % 2 == 0 && N > 4 )); then run even; else run odd; fi; [ $((N%3)) -eq 2 ] && run two
