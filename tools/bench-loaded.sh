#!/bin/sh
# bench-loaded.sh MODEL [OPTIONS OF SERVE...]: two stages, every step full: where each stage's time goes, how good predictions are.
#
# 64 clients on two stages: steps of 32 sequences. A first load is not counted: the stage-time model learns, caches fill. Of
# stage 0 it says what the machine and everything else on it cost: wall time minus CPU time while its input was there.
# CLIENTS=64 PROMPTS=192 INPUT_LEN=64 OUTPUT_LEN=96
set -eu
model=$1
shift
. "$(dirname "$0")/bench-engine.sh"
start_engine "$model" --pipeline-parallel-size 2 --policy even --no-enable-prefix-caching "$@"
python3 - "$bin/evenflow" "$socket" "${CLIENTS:-64}" "${PROMPTS:-192}" "${INPUT_LEN:-64}" "${OUTPUT_LEN:-96}" <<'PYTHON'
import json, re, socket, subprocess, sys

program, path, clients, prompts, input_len, output_len = sys.argv[1:]


def metrics():
    """Every number of /metrics, by name and labels."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return {name: float(value) for name, value in re.findall(r"^(evenflow_\S+) (\S+)\r?$", text, re.M)}


def load(count):
    out = subprocess.run([program, "bench", "--socket", path, "--num-prompts", count, "--max-concurrency", clients, "--input-len",
                          input_len, "--output-len", output_len, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def machine():
    """Ticks of all processors: idle, stolen by the hypervisor, all."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return fields[3] + fields[4], fields[7], sum(fields)


load(clients)
before, ticks = metrics(), machine()
result = load(prompts)
after, ticks_after = metrics(), machine()
delta = {name: after[name] - before.get(name, 0) for name in after}
causes = ["busy", "waiting_for_cpu", "uneven", "hand_off", "no_work"]
print(f"{'stage':8s}" + "".join(f"{cause:>17s}" for cause in causes) + f"{'steps':>8s}{'prediction error':>19s}")
for stage in range(32):
    times = [delta.get(f'evenflow_stage_time_seconds_total{{stage="{stage}",is="{cause}"}}') for cause in causes]
    if None in times:
        break
    steps = delta[f'evenflow_stage_predicted_steps_total{{stage="{stage}"}}']
    error = delta[f'evenflow_stage_prediction_error_total{{stage="{stage}"}}'] / max(steps, 1)
    shares = [100 * time / sum(times) for time in times]
    print(f"{stage:<8d}" + "".join(f"{share:15.2f} %" for share in shares) + f"{steps:8.0f}{100 * error:17.2f} %")
    if stage == 0:
        stolen = shares[1]
loaded = delta["evenflow_loaded_microseconds_total"]
efficiency = delta["evenflow_lower_bound_microseconds_total"] / loaded if loaded else float("nan")
idle, steal, total = (b - a for a, b in zip(ticks, ticks_after))
print(f"stage 0, wall minus CPU time while its input was there: {stolen:.2f} % of the wall")
print(f"output {result['output_throughput']:.1f} tok/s, efficiency {efficiency:.3f}; "
      f"machine: {100 * idle / total:.1f} % idle, {100 * steal / total:.1f} % stolen by the hypervisor")
PYTHON
