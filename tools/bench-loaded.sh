#!/bin/sh
# bench-loaded.sh MODEL [OPTIONS OF SERVE...]: two stages, every step full: where each stage's time goes, how good predictions are.
#
# 64 clients on two stages: steps of 32 sequences. A first load is not counted: the stage-time model learns, caches fill. Of
# stage 0 it says what the machine and everything else on it cost: wall time minus CPU time while its input was there, how much
# of it in a processor's queue, how often others took the processor, page faults, and who had the processors. Beside the
# predictions stands by what steps that did the same differ.
# CLIENTS=64 PROMPTS=192 INPUT_LEN=64 OUTPUT_LEN=96
set -eu
model=$1
shift
. "$(dirname "$0")/bench-engine.sh"
start_engine "$model" --pipeline-parallel-size 2 --policy even --no-enable-prefix-caching "$@"
python3 - "$bin/evenflow" "$socket" "${CLIENTS:-64}" "${PROMPTS:-192}" "${INPUT_LEN:-64}" "${OUTPUT_LEN:-96}" <<'PYTHON'
import json, os, re, resource, socket, subprocess, sys, time

program, path, clients, prompts, input_len, output_len = sys.argv[1:]


def get(target):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def metrics():
    """Every number of /metrics, by name and labels."""
    return {name: float(value) for name, value in re.findall(r"^(evenflow_\S+) (\S+)\r?$", get(b"/metrics"), re.M)}


def processes():
    """Seconds on a processor, by process of the engine, and of the client; and what kept stage 0 from one."""
    seconds, kept = {}, None
    for process in json.loads(get(b"/status").split("\r\n\r\n", 1)[1])["processes"]:
        name = f"{process['role']} {process['index']}" if process["role"] == "stage" else process["role"]
        fields = open(f"/proc/{process['pid']}/stat").read().rsplit(")", 1)[1].split()
        seconds[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if name == "stage 0":
            queued = int(open(f"/proc/{process['pid']}/schedstat").read().split()[1]) / 1e9
            switches = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", open(f"/proc/{process['pid']}/status").read(), re.M)
            kept = queued, int(switches.group(1)), int(fields[7]) + int(fields[9])
    client = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds["client"] = client.ru_utime + client.ru_stime
    return seconds, kept


def load(count):
    out = subprocess.run([program, "bench", "--socket", path, "--num-prompts", count, "--max-concurrency", clients, "--input-len",
                          input_len, "--output-len", output_len, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def machine():
    """Ticks of all processors: idle, stolen by the hypervisor, all."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return fields[3] + fields[4], fields[7], sum(fields)


load(clients)
before, ticks, (seconds, kept), began = metrics(), machine(), processes(), time.monotonic()
result = load(prompts)
after, ticks_after, (seconds_after, kept_after), wall = metrics(), machine(), processes(), time.monotonic() - began
delta = {name: after[name] - before.get(name, 0) for name in after}
causes = ["busy", "waiting_for_cpu", "uneven", "hand_off", "no_work"]
print(f"{'stage':8s}" + "".join(f"{cause:>17s}" for cause in causes) + f"{'steps':>8s}{'prediction error':>19s}{'the same again':>17s}")
for stage in range(32):
    times = [delta.get(f'evenflow_stage_time_seconds_total{{stage="{stage}",is="{cause}"}}') for cause in causes]
    if None in times:
        break
    steps = delta[f'evenflow_stage_predicted_steps_total{{stage="{stage}"}}']
    error = delta[f'evenflow_stage_prediction_error_total{{stage="{stage}"}}'] / max(steps, 1)
    shares = [100 * time / sum(times) for time in times]
    repeated = delta[f'evenflow_stage_repeated_steps_total{{stage="{stage}"}}']
    repeat = delta[f'evenflow_stage_repeat_error_total{{stage="{stage}"}}'] / repeated if repeated else float("nan")
    print(f"{stage:<8d}" + "".join(f"{share:15.2f} %" for share in shares) +
          f"{steps:8.0f}{100 * error:17.2f} %{100 * repeat:15.2f} %")
    if stage == 0:
        stolen = shares[1]
loaded = delta["evenflow_loaded_microseconds_total"]
efficiency = delta["evenflow_lower_bound_microseconds_total"] / loaded if loaded else float("nan")
idle, steal, total = (b - a for a, b in zip(ticks, ticks_after))
queued, switches, faults = (b - a for a, b in zip(kept, kept_after))
print(f"stage 0, wall minus CPU time while its input was there: {stolen:.2f} % of the wall; in a processor's queue for "
      f"{100 * queued / wall:.2f} %, for others {switches / wall:.1f} times a second, {faults} page faults")
shares = {name: 100 * (seconds_after[name] - seconds.get(name, 0)) / wall for name in seconds_after}
shares["everything else"] = 100 * os.cpu_count() * (1 - (idle + steal) / total) - sum(shares.values())
print("of a processor's time: " + ", ".join(f"{name} {share:.1f} %" for name, share in shares.items()))
print(f"output {result['output_throughput']:.1f} tok/s, efficiency {efficiency:.3f}; "
      f"machine: {100 * idle / total:.1f} % idle, {100 * steal / total:.1f} % stolen by the hypervisor")
PYTHON
