#!/bin/sh
# bench-timed.sh MODEL: the seed's workload (256 requests of 128 + 128 tokens, 13B over Ethernet on four stages) for real, on
# timed stages, beside the simulator. MODEL gives the vocabulary. Minutes: a run takes as long as the pipeline would.
#
# POLICIES="batch even" REQUESTS=256 INPUT_LEN=128 OUTPUT_LEN=128 BLOCKS=934 BUDGET=16384
set -eu
model=$1
pipeline=tests/data/13b_ethernet.pipeline.json
requests=${REQUESTS:-256} input=${INPUT_LEN:-128} output=${OUTPUT_LEN:-128} blocks=${BLOCKS:-934} budget=${BUDGET:-16384}
. "$(dirname "$0")/bench-engine.sh"
echo "policy      simulated s    served s   difference"
for policy in ${POLICIES:-default batch even}; do
    window=4
    [ "$policy" != even ] || window=8 # as many as it may choose
    python3 -c 'import json, sys
n, prompt, output, blocks, budget, window = map(int, sys.argv[1:])
json.dump({"config": {"max_num_batched_tokens": budget, "max_num_seqs": 256, "num_blocks": blocks, "window": window,
                      "enable_prefix_caching": False},
           "requests": [{"id": f"r{i}", "prompt": [[i, prompt]], "max_tokens": output} for i in range(n)]}, sys.stdout)' \
        "$requests" "$input" "$output" "$blocks" "$budget" $window >"$work/scenario.json"
    simulated=$("$bin/evenflow" sim "$work/scenario.json" --pipeline $pipeline --policy "$policy" --json | number makespan_s)
    start_engine "$model" --backend timed --cost $pipeline --freeze-model --policy "$policy" --window $window \
        --num-blocks "$blocks" --max-num-batched-tokens "$budget" --max-num-seqs 256 --no-enable-prefix-caching
    served=$("$bin/evenflow" bench --socket "$socket" --num-prompts "$requests" --max-concurrency "$requests" \
        --input-len "$input" --output-len "$output" --json | number duration)
    stop_engine
    python3 -c 'import sys
policy, simulated, served = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
print(f"{policy:11s} {simulated:11.2f} {served:11.2f} {100 * (served / simulated - 1):+10.2f} %")' "$policy" "$simulated" "$served"
done
