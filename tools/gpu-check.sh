#!/bin/sh
# gpu-check.sh [FOLDER]: everything that only a GPU can prove, in one go, under nine minutes; a report in FOLDER (default
# build/gpu-check). No network, nothing installed. Needs nvcc, the packages of make test and a device, cuda:0.
#
# EVENFLOW_LIBCUDA names another driver than libcuda.so.1: with build/tests/driver/libcuda.so.1, the stand-in, the script itself is
# tried where there is no GPU, and the report says so.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu-check}
build=${BUILD:-build}
cores=$(nproc)
deadline=$(($(date +%s) + 530))
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$out" || exit 1
report=$out/report.txt
: >"$report"
failures=0
export EVENFLOW_BUILD="$build" EVENFLOW_LIBCUDA="${EVENFLOW_LIBCUDA:-libcuda.so.1}"

say()
{
    echo "$1" | tee -a "$report"
}

# step NAME SECONDS COMMAND...: what it prints goes to FOLDER/NAME.txt; whether it worked, and how long it took, to the report.
step()
{
    name=$1 seconds=$2 begin=$(date +%s)
    shift 2
    left=$((deadline - begin))
    [ "$seconds" -le "$left" ] || seconds=$left
    if [ "$seconds" -le 0 ]; then
        say "not run  $name: the time is over"
        failures=$((failures + 1))
        return 1
    fi
    timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
    status=$?
    took=$(($(date +%s) - begin))
    if [ $status -eq 0 ]; then
        say "ok       $name ($took s)"
    else
        say "FAILED   $name ($took s, status $status): $(tail -n 1 "$out/$name.txt")"
        failures=$((failures + 1))
    fi
    return $status
}

step build 240 make BUILD="$build" CUDA=on -j"$cores" all tests benches || exit 1
step roofline 60 "$build/bin/bench-cuda" || exit 1
head -n 1 "$out/roofline.txt" | tee -a "$report"
grep -q 'stand-in' "$out/roofline.txt" && say "stand-in, no GPU result: this run says only that the script works"
tail -n +2 "$out/roofline.txt" | tee -a "$report"

# Two processes that hand on to each other, without a processor on the way: on one device, and on two where there are.
for memory in vmm ipc; do
    step hand-off-$memory 30 "$build/bin/bench-hand-off" 0 0 $memory && tee -a "$report" <"$out/hand-off-$memory.txt"
done
if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ]; then
    step hand-off-peers 30 "$build/bin/bench-hand-off" 0 1 && tee -a "$report" <"$out/hand-off-peers.txt"
else
    say "not run  hand-off-peers: it needs two GPUs"
fi

# Kernels against the plain path, and the sweep: a row alone and beside up to 255 others, chunks, block sizes.
step kernels 120 "$build/tests/test_cuda" --jobs 1
step forward 120 "$build/tests/test_forward_cuda" --jobs 1
# Whole engines: 1, 2 and 4 stages, mixed pipelines, activations over the host and not, kill -9 of each stage in the middle of answers.
step engines 180 "$build/tests/test_devices" --jobs 1

# The real model, where it is there: loss of a page on the device beside the processor's, with 1, 2 and 4 stages.
if [ -r "$model" ] && ! grep -q 'stand-in' "$out/roofline.txt"; then
    for stages in 1 2 4; do
        step "page-$stages" 60 "$build/bin/evenflow" perplexity "$model" tests/data/page.txt --json -p $stages --devices cuda:0
    done
    if ! cmp "$out/page-1.txt" "$out/page-2.txt" || ! cmp "$out/page-1.txt" "$out/page-4.txt"; then
        say "FAILED   page: its losses depend on the stages"
        failures=$((failures + 1))
    fi
    step bench 60 env BUILD="$build" tools/bench-serve.sh "$model" -p 1 --devices cuda:0 && tail -n +2 "$out/bench.txt" | tee -a "$report"
else
    say "not run  page, bench: they need $model and a GPU"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && ! grep -q 'stand-in' "$out/roofline.txt"; then
    for tool in memcheck racecheck; do
        step "$tool" 100 "$sanitizer" --tool $tool --target-processes all --error-exitcode 9 "$build/tests/test_forward_cuda" --jobs 1
    done
else
    say "not run  compute-sanitizer: it needs a GPU and the toolkit's program"
fi
command -v nvidia-smi >/dev/null && nvidia-smi >"$out/nvidia-smi.txt" 2>&1

say "$failures steps failed; details in $out"
[ "$failures" -eq 0 ]
