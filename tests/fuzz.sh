#!/bin/sh
# fuzz.sh BUILD SECONDS: every fuzz target of a build over its corpus, then for its share of the time; two at once.
# What libFuzzer finds new stays in BUILD/corpus, for its next run; inputs that fail are left in crash-TARGET... .
set -u
build=$1 seconds=$2
targets=$(cd "$build/bin" && ls -d fuzz_*)
count=$(echo "$targets" | wc -l)
# shellcheck disable=SC2016 # expanded by the inner shell
echo "$targets" | xargs -P 2 -I '{}' sh -c '
    target=$1 build=$2 seconds=$3
    export ASAN_OPTIONS=handle_abort=1 UBSAN_OPTIONS=print_stacktrace=1
    corpus=tests/corpus/${target#fuzz_} log=$build/$target.log
    if nm "$build/bin/$target" | grep -q " T LLVMFuzzerRunDriver"; then
        found=$build/corpus/$target
        mkdir -p "$found"
        "$build/bin/$target" -max_total_time="$seconds" -timeout=10 -max_len=8192 -artifact_prefix="crash-$target-" \
            "$found" "$corpus" >"$log" 2>&1
    else
        "$build/bin/$target" "$seconds" "$corpus" >"$log" 2>&1
    fi
    status=$?
    if [ "$status" -eq 0 ]; then
        echo "fuzz: $target: $(grep -E "^Done|mutations$" "$log" | head -n 1)"
    else
        echo "fuzz: $target fails; $log ends:"
        grep -v "^  0x" "$log" | head -n 40
    fi
    exit "$status"
' sh '{}' "$build" "$(((seconds + count - 1) / count))"
