#!/usr/bin/awk -f
# selected.awk SKIPPED TESTS: the tests that SKIPPED does not name. Its lines are `NAME REASON`, where NAME is a test, or
# all tests whose names start with it if it ends in `::`. Fails if a line has no reason or names no test.
FNR == 1 { file++ }
file == 1 && /^(#|$)/ { next }
file == 1 {
  if (NF < 2) { print FILENAME ": no reason: " $0 > "/dev/stderr"; failed = 1; exit }
  uses[$1] = 0
  next
}
{
  is_skipped = 0
  for (name in uses) {
    if ($0 == name || (name ~ /::$/ && index($0, name) == 1)) { uses[name]++; is_skipped = 1 }
  }
  if (!is_skipped) print
}
END {
  for (name in uses) if (!failed && !uses[name]) { print "no test is named " name > "/dev/stderr"; failed = 1 }
  exit failed
}
