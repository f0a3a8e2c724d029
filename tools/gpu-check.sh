#!/bin/sh
# gpu-check.sh [FOLDER]: everything that only a GPU can prove, in one go, under nine minutes; a report in FOLDER (default
# build/gpu-check): report.txt, which grows line by line, and details.txt, all that the parts printed. No network, nothing
# installed. Needs a device, cuda:0, and nvcc and the packages of make test, or what make gpu-pack made elsewhere:
#
#   make gpu-pack                                # where there is everything but a GPU
#   BUILD=build/gpu-pack tools/gpu-check.sh      # where there is a GPU and nothing else
#
# Parts stand in the order of what they tell; each has a limit of its own, and one that fails or hangs costs no other.
#
# EVENFLOW_LIBCUDA names another driver than libcuda.so.1: with tests/driver/libcuda.so.1 of the build, the stand-in, the script
# itself is tried where there is no GPU, and the report says so.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu-check}
build=${BUILD:-build}
deadline=$(($(date +%s) + 530))
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$out" || exit 1
parts=$(mktemp -d) || exit 1
trap 'rm -rf "$parts"' EXIT
report=$out/report.txt details=$out/details.txt
: >"$report"
: >"$details"
failures=0
export EVENFLOW_BUILD="$build" EVENFLOW_LIBCUDA="${EVENFLOW_LIBCUDA:-libcuda.so.1}"
[ ! -e "$build/packed" ] || export LD_LIBRARY_PATH="$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

say()
{
    echo "$1" | tee -a "$report"
}

# part NAME SECONDS COMMAND...: what it prints goes to the details and stays in $parts/NAME for the script; whether it worked, and
# how long it took, to the report.
part()
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
    timeout -k 5 "$seconds" "$@" >"$parts/$name" 2>&1 </dev/null
    status=$?
    took=$(($(date +%s) - begin))
    { echo "==== $name: $*"; cat "$parts/$name"; echo; } >>"$details"
    case $status in
    0) say "ok       $name ($took s)" ;;
    124 | 137) say "FAILED   $name: not done in $seconds s; its last line: $(tail -n 1 "$parts/$name")" ;;
    *) say "FAILED   $name ($took s, status $status): $(tail -n 1 "$parts/$name")" ;;
    esac
    [ $status -eq 0 ] || failures=$((failures + 1))
    return $status
}

# table NAME: what a part measured belongs into the report, as far as it came.
table()
{
    [ ! -e "$parts/$1" ] || sed 's/^/         /' "$parts/$1" | tee -a "$report"
}

# tests NAME SECONDS PROGRAM [ARGUMENTS]: and the names of those that failed.
tests()
{
    tested=$1 limit=$2 program=$3
    shift 3
    part "$tested" "$limit" "$build/tests/$program" --jobs 1 --verbose=1 "$@" && return 0
    grep -E '^\[(FAIL|CRASH)|TIMEOUT|^\[====\]' "$parts/$tested" | head -n 20 | sed 's/^/         /' | tee -a "$report"
    return 1
}

say "gpu-check, $(date -u '+%Y-%m-%d %H:%M') UTC, $(nproc) cores, $(uname -sr)"
part machine 10 sh -c 'nvidia-smi || true; nvidia-smi topo -m || true; command -v nvcc compute-sanitizer nvidia-cuda-mps-control; ulimit -l; cat /proc/driver/nvidia/version; true'

if [ -e "$build/packed" ]; then
    say "         programs of $build, built elsewhere"
else
    part build 300 make BUILD="$build" CUDA=on -j"$(nproc)" all "$build/tests/test_cuda" "$build/tests/test_forward_cuda" \
        "$build/tests/test_devices" "$build/bin/bench-cuda" "$build/bin/bench-decode" "$build/bin/bench-hand-off" || exit 1
fi

# What the device copies, and each kernel beside it.
part roofline 60 "$build/bin/bench-cuda"
table roofline
stand_in=$(grep -c 'stand-in' "$parts/roofline")
[ "$stand_in" -eq 0 ] || say "stand-in, no GPU result: this run says only that the script works"

# Kernels against the plain path, and the sweep: a row alone and beside up to 255 others, chunks, block sizes, draws; memory that
# outlives a process that is killed in the middle of writing it, and is not written any more then.
tests kernels 90 test_cuda
tests forward 90 test_forward_cuda

# Whole steps of models of usual shapes beside the time that their bytes take, with and without graphs.
part decode 90 "$build/bin/bench-decode"
table decode

# Two processes that hand on to each other, without a processor on the way: on one device, and on two where there are.
for memory in vmm ipc; do
    part hand-off-$memory 25 "$build/bin/bench-hand-off" 0 0 $memory
    table hand-off-$memory
done
if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ]; then
    part hand-off-peers 25 "$build/bin/bench-hand-off" 0 1
    table hand-off-peers
else
    say "not run  hand-off-peers: it needs two GPUs"
fi

# Whole engines: 1, 2 and 4 stages, mixed pipelines, activations over the host and not, kill -9 of each stage in the middle of answers.
nccl=${EVENFLOW_LIBNCCL:-$(ldconfig -p | awk '$1 == "libnccl.so.2" { print $NF; exit }')}
nccl=${nccl:-$(ls /usr/local/cuda/lib64/libnccl.so.2 2>/dev/null)}
unset EVENFLOW_LIBNCCL # with it, tests that name a driver of their own would not name the NCCL that goes with it
tests engines 180 test_devices

# Engines whose activations NCCL carries, ends of it killed: on two GPUs, or on one, whose ends NCCL then takes for two machines and
# joins by sockets.
if [ -n "$nccl" ]; then
    two=$([ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ] && echo cuda:1 || echo cuda:0)
    export EVENFLOW_LIBNCCL="$nccl" EVENFLOW_SECOND_DEVICE="$two"
    say "nccl: $nccl, cuda:0 to $two"
    tests nccl 90 test_devices --filter 'devices/*nccl*'
    unset EVENFLOW_LIBNCCL EVENFLOW_SECOND_DEVICE
else
    say "not run  nccl: there is no libnccl.so.2; EVENFLOW_LIBNCCL names one"
fi

# The real model, where it is there: loss of a page on the device beside the processor's, with 1, 2 and 4 stages.
if [ -r "$model" ] && [ "$stand_in" -eq 0 ]; then
    for stages in 1 2 4; do
        part "page-$stages" 40 "$build/bin/evenflow" perplexity "$model" tests/data/page.txt --json -p $stages --devices cuda:0
    done
    if cmp -s "$parts/page-1" "$parts/page-2" && cmp -s "$parts/page-1" "$parts/page-4"; then
        table page-1
    else
        say "FAILED   page: its losses depend on the stages"
        failures=$((failures + 1))
    fi
    part bench 60 env BUILD="$build" tools/bench-serve.sh "$model" -p 1 --devices cuda:0
    table bench
else
    say "not run  page, bench: they need $model and a GPU"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && [ "$stand_in" -eq 0 ]; then
    for tool in memcheck racecheck; do
        part "$tool" 90 "$sanitizer" --tool $tool --target-processes all --error-exitcode 9 "$build/tests/test_forward_cuda" \
            --jobs 1 --filter 'forward_cuda/tokens_that*'
    done
else
    say "not run  compute-sanitizer: it needs a GPU and the toolkit's program"
fi

say "$failures parts failed; details in $details"
[ "$failures" -eq 0 ]
