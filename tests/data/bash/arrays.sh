# Each part begins with ### and its name, and is a script of its own.
### mapfile procsub
mapfile -t A < <(echo a; echo b)
run "${A[@]}"
### readarray
readarray -t A <<< "a
b"
run "${A[@]}" ${#A[@]}
### declare -A
declare -A M=([a b]=1 ["c"]=2)
M[d]=3
k=e; M[$k]=4
run ${M["a b"]} ${M[c]} ${M[d]} ${M[e]} ${#M[@]}
### declare -A list
declare -A M=(a 1 b 2)
run ${M[a]} ${M[b]}
### assoc keys
declare -A M=([a]=1)
run "${!M[@]}" "${M[@]}"
### assoc many
declare -A M=([a]=1 [bb]=2 [ccc]=3)
for k in "${!M[@]}"; do run $k ${M[$k]}; done
### assoc many vals
declare -A M=([a]=1 [bb]=2 [ccc]=3)
run "${M[@]}"
### assoc +=
declare -A M=([a]=1); M+=([b]=2); M[a]+=x; run ${M[a]} ${M[b]}
### assoc unset
declare -A M=([a]=1 [b]=2); unset "M[a]"; run ${#M[@]} ${M[b]}; [[ -v M[b] ]] && run yes; [[ -v M[a] ]] || run no
### assoc iter unset
declare -A M; run ${M[x]:-none} ${#M[@]}
### += ints
declare -i N=1; N+=2; N+=N; M=1; M+=2; run $N $M
### += int arr
declare -ia A=(1 2); A[0]+=5; run "${A[@]}"
### += arr elem
A=(a b); A[1]+=x; A+=(c); A[5]=f; run "${A[@]}" "${!A[@]}"
### += on array scalar
A=(a b); A+=x; run "${A[@]}"
### slice
A=(0 1 2 3 4); run ${A[@]:1:2} "${A[@]: -2}" ${A[@]:3} ${A[*]:0:1}
### slice args
set -- a b c d; run "${@:2:2}" "${@: -1}" "${@:0:1}" "${*:3}"
### keys
A=([3]=x [7]=y); run "${!A[@]}" "${A[@]}" ${#A[@]} ${A[-1]}
### arr append elements
A=(); A+=(--x 1); A+=("--y z"); if true; then A+=(--w); fi; run "${A[@]}" ${#A[@]}
### arr copy
A=(1 "2 3"); B=("${A[@]}"); C=(${A[@]}); D=${A[@]}; run ${#B[@]} ${#C[@]} "$D"
### arr sparse
A[3]=x; A[1]=y; run "${A[@]}" ${#A[@]} "${!A[@]}" "${A[0]-u}"; A+=(z); run "${!A[@]}"
### arr idx init
A=([2]=c [0]=a b); run "${A[@]}" "${!A[@]}"; A=(x [5]=y z); run "${!A[@]}"
### arr neg
A=(1 2 3); run ${A[-1]} ${A[-2]}; A[-1]=9; run "${A[@]}"; unset "A[-1]"; run "${A[@]}"
### arr idx expr
A=(a b c d); i=1; run ${A[i]} ${A[i+1]} ${A[$i]} ${A[$((i+2))]}; A[i]=z; run "${A[@]}"
### arr slice assign
A=(1 2 3 4); A=("${A[@]:1}"); run "${A[@]}"; A=("${A[@]:0:${#A[@]}-1}"); run "${A[@]}"
### arr loop idx
A=(x y); for i in "${!A[@]}"; do run $i ${A[$i]}; done; for ((i=0;i<${#A[@]};i++)); do run ${A[i]}; done
### arr scalar conv
A=x; A+=(y); run "${A[@]}"; B=(1 2); B=z; run "${B[@]}"; C=s; run ${C[0]} ${#C[@]} "${C[@]}"; run "${C[1]-u}"
### arr in string
A=(1 2); run "a ${A[*]} b" "x${A[@]}y" x${A[@]}y
### arr empty q
A=(); run "${A[@]}" "${A[*]}" ${A[@]} end; A=("" a); run "${A[@]}" ${A[@]}
### arr newline
A=(
 a # c
 "b c" \
 d

)
run "${A[@]}"
### arr split
IFS=, ; s=a,b,c; A=($s); unset IFS; run "${A[@]}" ${#A[@]}; B=($(echo x y)); run ${#B[@]}
### arr of flags
G=(
 --tp 1 # x
 # comment
 --pp 2
)
run "${G[@]}"
### arr local nested
f() { local A=("$@"); A+=(z); run "${A[@]}"; }; f a "b c"
### arr fill read
A=(); while read -r l; do A+=("$l"); done <<< $'a b\nc'; run "${A[@]}" ${#A[@]}
### mapfile cb
mapfile A <<< $'x\ny'; run "${A[0]}"
### array func return
f() { R=(a b "$@"); }; f c; run "${R[@]}"
