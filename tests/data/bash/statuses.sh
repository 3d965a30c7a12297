# Each part begins with ### and its name, and is a script of its own.
### $?
false; run $?; true; run $?; (exit 3); run $?; [ 1 = 2 ]; run $?
### $? func
f() { return 7; }; f; run $?; X=$(exit 4); run $?; f || run $?
### nested func local exit
f() { ( exit 2 ); return $?; }; f; run $?
### time status
time false; run $?
### neg status
! true; run $?; ! false; run $?
### pipe status
true | false; run $?; false | true; run $?; set -o pipefail; false | true; run $?
### status assign
false; x=1; run $?; x=$(false); run $?
### status if
if false; then :; fi; run $?; if true; then false; fi; run $?
### status loop
for i in 1; do false; done; run $?; for i in; do :; done; run $?
### status case
false; case a in a) ;; esac; run $?
### status function
f() { false; }; f; run $?; f() { :; }; f; run $?
### status local
f() { local x=$(false); run $?; local y; y=$(false); run $?; }; f
### status test
[ 1 = 1 ]; run $?; [[ a = b ]]; run $?; ((0)); run $?; ((1)); run $?
### status return
f() { false; return; }; f; run $?; g() { return 300; }; g; run $?
### status subshell exit
(exit 256); run $?; (exit -1); run $?
