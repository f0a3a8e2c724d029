#!/bin/sh
# bench-policies.sh MODEL: one engine per policy and number of stages, in turn and again, so that a while in which the machine is
# slower does not fall on one of them; what clients see, and whether all of them give the same bits.
#
# POLICIES="even batch default decode-cap throttle chunked" STAGES="2 3" ROUNDS=2 CLIENTS=32 PROMPTS=64 INPUT_LEN=128 OUTPUT_LEN=64
set -eu
model=$1
. "$(dirname "$0")/bench-engine.sh"

# Requests whose answers must be the same whoever plans them: prompts of many lengths, half of them sampled.
python3 -c 'import json
for i in range(32):
    print(json.dumps({"prompt": [100 + (i * 977 + j * 31) % 20000 for j in range(5 + i * 9)], "max_tokens": 24, "seed": i,
                      "temperature": i % 2, "ignore_eos": True, "return_token_ids": True, "return_logits_hash": True}))' >"$work/requests.jsonl"

one()
{
    start_engine "$model" --pipeline-parallel-size "$2" --policy "$1"
    "$bin/evenflow" complete --socket "$socket" --jsonl "$work/requests.jsonl" --concurrency 32 |
        python3 -c 'import hashlib, json, sys
answers = [json.loads(line) for line in sys.stdin]
bits = json.dumps([[a["token_ids"], a["logits_hash"]] for a in answers])
print(hashlib.sha256(bits.encode()).hexdigest())' >"$work/bits"
    "$bin/evenflow" bench --socket "$socket" --num-prompts "${PROMPTS:-64}" --max-concurrency "${CLIENTS:-32}" \
        --input-len "${INPUT_LEN:-128}" --output-len "${OUTPUT_LEN:-64}" --json >"$work/bench.json"
    "$bin/evenflow" status --socket "$socket" --json >"$work/status.json"
    stop_engine
    python3 -c 'import json, sys
policy, stages, work = sys.argv[1:]
bench, status = (json.load(open(f"{work}/{name}.json")) for name in ("bench", "status"))
print(json.dumps({"policy": policy, "stages": int(stages), "bits": open(f"{work}/bits").read().strip(),
                  "output": bench["output_throughput"], "ttft": bench["median_ttft_ms"], "tpot": bench["median_tpot_ms"],
                  "tpot99": bench["p99_tpot_ms"], "efficiency": status["pipeline"]["efficiency"]}))' \
        "$1" "$2" "$work" >"$work/run.json"
    cat "$work/run.json" >>"$work/results.jsonl"
    cat "$work/run.json" >&2
}

for _ in $(seq "${ROUNDS:-2}"); do
    for stages in ${STAGES:-2 3}; do
        for policy in ${POLICIES:-even batch default decode-cap throttle chunked}; do
            one "$policy" "$stages"
        done
    done
done
python3 -c 'import json, statistics, sys
runs = [json.loads(line) for line in open(sys.argv[1])]
columns = ["output", "ttft", "tpot", "tpot99", "efficiency"]
print("stages policy       output tok/s  ttft p50 ms  tpot p50 ms  tpot p99 ms   efficiency   medians of so many rounds")
for stages, policy in dict.fromkeys((run["stages"], run["policy"]) for run in runs):
    own = [run for run in runs if (run["stages"], run["policy"]) == (stages, policy)]
    middles = [statistics.median(run[column] for run in own) for column in columns]
    print(f"{stages:6d} {policy:12s}" + "".join(f"{middle:13.2f}" for middle in middles) + f"   {len(own)}")
different = {run["bits"] for run in runs}
print("bits: the same from all of them" if len(different) == 1 else f"bits: {len(different)} different answers")
sys.exit(len(different) != 1)' "$work/results.jsonl"
