#!/bin/sh
# bench-structured.sh MODEL [OPTIONS OF SERVE...]: what keeping to a JSON schema costs 16 clients, beside free text.
#
# The same prompts and 128 tokens of each answer: no answer to these schemas ends before. "one schema" is all requests' the same,
# "a schema each" makes every request bring one that the engine has not seen. Greedy and drawn answers.
set -eu
model=$1
shift
. "$(dirname "$0")/bench-engine.sh"
start_engine "$model" "$@"
python3 - "$work" "${PROMPTS:-64}" <<'END'
import json, sys

folder, count = sys.argv[1], int(sys.argv[2])
for temperature in (0, 0.8):
    for kind in ("free", "one", "each"):
        with open(f"{folder}/{kind}-{temperature}.jsonl", "w") as lines:
            for i in range(count):
                body = {"prompt": f"People and their towns, list number {i}, as JSON:\n", "max_tokens": 128,
                        "temperature": temperature, "seed": i}
                name = "name" if kind == "one" else f"name{temperature}x{i}"
                person = {"type": "object", "required": [name, "town", "age"], "additionalProperties": False,
                          "properties": {name: {"type": "string"}, "town": {"type": "string"}, "age": {"type": "integer"}}}
                if kind == "free":
                    body["ignore_eos"] = True
                else:
                    body["guided_json"] = {"type": "array", "items": person, "minItems": 40}
                lines.write(json.dumps(body) + "\n")
END
echo "temperature  answers        output tok/s  of free text"
for temperature in 0 0.8; do
    free=
    for kind in free one each; do
        case $kind in free) name="free text" ;; one) name="one schema" ;; *) name="a schema each" ;; esac
        rate=$("$bin/evenflow" bench --socket "$socket" --dataset "$work/$kind-$temperature.jsonl" --max-concurrency 16 --json |
            number output_throughput)
        [ -n "$free" ] || free=$rate
        python3 -c 'import sys
temperature, name, rate, free = sys.argv[1:]
print(f"{temperature:11s}  {name:13s} {float(rate):13.1f} {float(rate) / float(free):13.2f}")' "$temperature" "$name" "$rate" "$free"
    done
done
