#!/bin/sh
# bench-serve.sh MODEL [OPTIONS OF SERVE...]: an engine of its own, then evenflow bench with 1, 16 and 32 clients.
#
# decode tok/s is clients / median time per output token: what all clients together get while nothing is prefilled.
# front and sched: microseconds of their processor time for each token.
set -eu
model=$1
shift
. "$(dirname "$0")/bench-engine.sh"
start_engine "$model" "$@"
echo "clients  decode tok/s  output tok/s  tpot p50 ms  ttft p50 ms  front us  sched us"
for clients in 1 16 32; do
    prompts=$((clients * 2))
    [ "$clients" -gt 1 ] || prompts=4
    "$bin/evenflow" bench --socket "$socket" --num-prompts $prompts --max-concurrency $clients \
        --input-len "${INPUT_LEN:-128}" --output-len "${OUTPUT_LEN:-128}" --json |
        python3 -c 'import json, sys
clients, r = int(sys.argv[1]), json.load(sys.stdin)
tpot, ttft = r["median_tpot_ms"], r["median_ttft_ms"]
rate, out, cpu = 1000 * clients / tpot, r["output_throughput"], r["cpu_us_per_token"]
front, sched = cpu["front"], cpu["sched"]
print(f"{clients:7d} {rate:13.1f} {out:13.1f} {tpot:12.2f} {ttft:12.1f} {front:9.2f} {sched:9.2f}")' $clients
done
