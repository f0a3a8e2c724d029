#!/bin/sh
# run.sh BUILD: runs every test program of a build, from the top folder; the last line says how many passed.
set -u
build=$1
# Processes take their memory at start and keep it to their end: the leak checker would only list that.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
# What engines keep belongs to the build, not to the user.
export XDG_CACHE_HOME="$PWD/$build/cache"
passed=0 failed=0 names=
for test in "$build"/tests/test_*; do
    case "$test" in *.o | *.d) continue ;; esac
    echo "== $(basename "$test")"
    if EVENFLOW_BUILD=$build "$test" --jobs 2; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        names="$names $(basename "$test")"
    fi
done
[ -z "$names" ] || echo "failed:$names"
echo "programs: $passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
