#!/bin/sh
# stress-long.sh BUILD MODEL SECONDS: engines side by side whose processes die all the time; says in one line how it went.
#
#   uring, epoll   an engine on each back end, at every named point at least once, every kind of fault; a new engine where one
#                  ended with its supervisor
#   lasting        one engine for all that time, with spares and upgrades, a fault every second: its memory stays what it was
#   computing      likewise, two stages that compute a tiny model, with a cache of bytes and drafts
#
# Each says a line a minute. A failure is counted and kept, and the next engine goes on. SEED=1, KILLS=10000: fewer in all have
# failed, too. Artefacts: BUILD/stress-uring, -epoll, -lasting, -computing.
set -eu
build=$1 model=$2 seconds=$3
seed=${SEED:-1} kills=${KILLS:-10000}

run() { # NAME OPTIONS...
    name=$1
    shift
    mkdir -p "$build/stress-$name"
    "$build/points/evenflow" stress --json --keep-going --seconds "$seconds" --kills 1000000000 --seed "$seed" --num-blocks 400 \
        --artefacts "$build/stress-$name" "$@" >"$build/stress-$name/verdict.json" 2>"$build/stress-$name/progress" &
    started="$started $!"
}

started=""
trap 'kill $started 2>/dev/null' EXIT
trap 'exit 130' INT TERM
timed="-p 3 --backend timed --cost tests/data/timed_fast.pipeline.json"
tiny="$build/tiny.gguf"
"$build/bin/tiny-model" "$tiny"
run uring --io uring --every-point --every 150 $timed "$model"
run epoll --io epoll --every-point --every 150 $timed "$model"
run lasting --lasting --every 1000 --round 60 --spares 1 --upgrade-every 15 $timed "$model"
run computing --lasting --every 1000 --round 60 --spares 1 --upgrade-every 15 -p 2 --kv-type q8 --speculate ngram --no-weights-cache "$tiny"
tail -q -F "$build/stress-uring/progress" "$build/stress-epoll/progress" "$build/stress-lasting/progress" \
    "$build/stress-computing/progress" 2>/dev/null &
shown=$!
for process in $started; do
    wait "$process" || true
done
kill $shown
trap - EXIT
python3 - "$kills" "$build" uring epoll lasting computing <<'PYTHON'
import json, sys

wanted, build, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
total = at_points = failures = 0


def held(what):
    return " ".join(f"{p['role']} {p['own_kb']}/{p['descriptors']}" for p in what["processes"]) + f", shared {what['shared_kb']}"


for name in names:
    try:
        v = json.load(open(f"{build}/stress-{name}/verdict.json"))
    except ValueError:
        print(f"{name}: has left no verdict; see {build}/stress-{name}")
        failures += 1
        continue
    total, at_points, failures = total + v["kills"], at_points + v["kills_at_points"], failures + v["failures"]
    print(f"{name}: {v['verdict']}: {v['kills']} kills, {v['kills_at_points']} at {v['points_died_at']} of {v['points_within_reach']} "
          f"named points, {v['rounds']} rounds, {v['answers']} answers ({v['bytes'] / 1e6:.0f} MB) compared, {v['closed_unread']} closed "
          f"unread, {v['upgrades']} upgrades, {v['ended_with_supervisor']} engines ended with their supervisor, {v['failures']} failures")
    for when in ("before", "after"):
        print(f"    kB/descriptors {when}: {held(v['held_' + when])}")
    for role in ("front", "sched", "stage"):
        parts = v["recovery_ms"][role]
        print(f"    {role}, ms to the next byte: {parts['next byte']['p50']:.1f}, P99 {parts['next byte']['p99']:.1f}, of {parts['deaths']}")
is_clean = failures == 0 and total >= wanted
print(f"{'clean' if is_clean else 'FAILED'}: {total} kills, {at_points} of them at named points, {failures} failures")
sys.exit(not is_clean)
PYTHON
