# Each part begins with ### and its name, and is a script of its own.
### comments
run a # b
run c#d "e # f" # g
# run x
run \# h
### continuation
run a \
  b \
  c
run "x \
y" 'x \
y'
### continuation comment
run a \
  # comment
run b
### continuation in word
run a\
b
### continuation ends
run a \

run b
### and newline
true &&

  run a ||
  # c
  run b
### pipe newline
echo x |
  while read y; do run $y; done
### semicolons
run a; run b;
if true; then run c; fi; run d
### case layouts
x=b
case "$x" in a) run a;; (b) run b ;; *) run c; esac
case $x in
a|b)
run ab
;;
esac
case $x in esac
case x in x) ;; esac; run e
### case in keyword
case esac in (esac) run e;; esac; case in in in) run i;; esac
### case ;&
case a in a) run 1;& b) run 2;;& a*) run 3;; *) run 4;; esac
### case quote
x="*"; case $x in "*") run star;; *) run any;; esac; case "a b" in a\ b) run ab;; esac; p="a*"; case abc in $p) run var;; esac; case abc in "$p") run no;; *) run ok;; esac
### case none
case a in b) run b;; esac; run $?
### case multi
case 8B in 7B | 8B | "70 B" ) run x ;; esac
### case bracket
case b in [!a]) run n;; esac; case - in [a-]) run d;; esac; case ] in []]) run br;; esac; case 5 in [[:digit:]]) run dig;; esac
### backslash
run a\ b \$x \"q\" "\$x \a \\ \`" '\$'
### single quotes
run 'a'"b"c'd e'
### concat
x=1; run a$x"b$x"'c$x'${x}d$((x+1))
### redir fd
run a 2>&1 >/dev/null; run b 2>/dev/null; run c &>/dev/null; run d >/dev/null 2>&1; run e 1>&2; run f <&0; run g {fd}>/dev/null; run h 2>&-
### redir before
>/dev/null run a; 2>&1 run b; A=1 >/dev/null run c
### redir number
run 2 >/dev/null; run a2>/dev/null; run 2>/dev/null
### quoted in string
S='--a "b c"'; run $S; eval run $S
### lc
A=1;B=2 ;C=3
run $A$B$C;run x ;run y
### tabs
run	a	b
	if true;then
		run c
	fi
### brace group one line
{ run a; run b; }; { run c;}; (run d); ( run e;)
### keyword as arg
run if then fi do done { } case esac in [[ ]] ! time function
### double semicolon forms
case a in a) run 1 ;; esac
case a in
 a ) run 2;;
esac
case a in a) run 3
esac
### amp in string
run "a&b" a\&b 'c;d' "e|f" "g>h"
### hash in word
run a#b ${x:-#} "#c" $#
### esc newline in dq
run "a\
b"
### percent
run 50% %d a%b
### quote braces
run "${x:-"}"}" 
