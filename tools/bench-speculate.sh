#!/bin/sh
# bench-speculate.sh MODEL [OPTIONS OF SERVE...]: tokens a second with and without --speculate ngram, in turns.
#
# Greedy answers of TOKENS (128) to three kinds of prompts: source files to be written out again with a change (edit), paragraphs
# to be summarised (summary), and stories to be told (story), of which nothing stands in the prompt. drafted: drafts for each
# token of an answer; right: the share of them that was taken over.
set -eu
model=$1
shift
. "$(dirname "$0")/bench-engine.sh"
length=${TOKENS:-128}
python3 - "$work" "$(dirname "$0")/.." "$length" <<'END'
import glob, json, sys

folder, root, length = sys.argv[1:]
sources = [open(name).read()[:1500] for name in sorted(glob.glob(f"{root}/engine/*.c"))[:16]]
pages = [open(name).read()[500:2000] for name in sorted(glob.glob(f"{root}/docs/*.md"))]
things = ["the sea", "a clock", "bread", "a bridge", "rain", "chess", "a lighthouse", "a train"]
kinds = {
    "edit": [f"{text}\n\nThe same file again, with one name changed:\n\n{text[:40]}" for text in sources],
    "summary": [f"{pages[i % len(pages)]}\n\nSummary {i}, in the words of the text:\n\n" for i in range(16)],
    "story": [f"Story {i}, about {things[i % len(things)]}:\n\n" for i in range(16)],
}
for kind, prompts in kinds.items():
    with open(f"{folder}/{kind}.jsonl", "w") as lines:
        for prompt in prompts:
            lines.write(json.dumps({"prompt": prompt, "max_tokens": int(length), "temperature": 0, "ignore_eos": True}) + "\n")
END
tokens() # NAME: of tokens, as the engine counts them
{
    "$bin/evenflow" status --socket "$socket" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["tokens"][sys.argv[1]])' "$1"
}
for round in $(seq "${ROUNDS:-3}"); do
    for speculate in none ngram; do
        start_engine "$model" --speculate $speculate --no-enable-prefix-caching "$@"
        for kind in ${KINDS:-edit summary story}; do
            for clients in 1 8; do
                prompts=$((clients == 1 ? 4 : 16))
                drafted=$(tokens drafted) accepted=$(tokens accepted)
                "$bin/evenflow" bench --socket "$socket" --dataset "$work/$kind.jsonl" --num-prompts $prompts \
                    --max-concurrency $clients --json >"$work/result"
                echo "$kind $clients $speculate $(number median_tpot_ms <"$work/result")" \
                    "$(number output_throughput <"$work/result") $(($(tokens drafted) - drafted))" \
                    "$(($(tokens accepted) - accepted)) $((length * prompts))" >>"$work/results"
            done
        done
        stop_engine
    done
done
python3 - "$work/results" <<'END'
import statistics, sys

runs = {}
for line in open(sys.argv[1]):
    kind, clients, speculate, *values = line.split()
    runs.setdefault((kind, int(clients), speculate), []).append([float(value) for value in values])
median = {key: [statistics.median(column) for column in zip(*rows)] for key, rows in runs.items()}
print("prompts  clients  tok/s none  tok/s ngram  ratio  tpot none  tpot ngram ms  drafted  right")
for (kind, clients, speculate), (tpot, rate, drafted, accepted, tokens) in median.items():
    if speculate == "ngram":
        plain_tpot, plain_rate = median[kind, clients, "none"][:2]
        print(f"{kind:7s} {clients:8d} {plain_rate:11.1f} {rate:12.1f} {rate / plain_rate:6.2f} {plain_tpot:10.2f} {tpot:14.2f} "
              f"{drafted / tokens:8.2f} {accepted / max(drafted, 1):6.2f}")
END
