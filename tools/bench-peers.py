"""bench-peers.py MODEL BUILD FOLDER PEERS: evenflow beside what else would serve the same model file on the same cores.

PEERS, separated by commas: evenflow, evenflow-threads, evenflow-unlent, llama, openvino. Each in the configuration in which it is fastest:
  evenflow          -p 2, one thread a stage, over its socket, for all rows
  evenflow-threads  -p 1 with two threads, likewise
  evenflow-unlent   as evenflow, but no stage lends its core to the other (--lone-threads 1)
  llama             llama.cpp, two threads: its own llama-bench (prompt) and llama-batched-bench (decoding), llama-server for requests;
                    the model requantised to Q4_0, the type that it has repacked kernels for
  openvino          OpenVINO GenAI, continuous batching, in process, the model file itself

One after the other in every round, each alone on the machine (all others stopped, by SIGSTOP), medians of the rounds. A row that
finds no time any more has fewer rounds; the table says how many each figure has.

  prefill    tokens of prompts a second: 32 prompts of 256 tokens (llama.cpp: 512 tokens)
  decode B   tokens a second of B sequences behind 128 tokens each
  requests   seconds for N requests of 128 + 128 tokens, all sent at once

ROUNDS=5 REQUESTS=256 OUTPUT=64 SECONDS_MAX=840: smaller ones try the script out.
"""
import concurrent.futures
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

model, build, folder, names = sys.argv[1:5]
rounds, requests = int(os.environ.get("ROUNDS", 5)), int(os.environ.get("REQUESTS", 256))
output, seconds_max = int(os.environ.get("OUTPUT", 64)), float(os.environ.get("SECONDS_MAX", 840))
here = os.path.dirname(os.path.abspath(__file__))
work = tempfile.mkdtemp()
PREFILL = (32, 256) if requests >= 32 else (requests, 256)
BATCHES = (1, 8, 32)
MEASURES = ["prefill"] + [f"decode {b}" for b in BATCHES] + [f"{requests} requests"]


class Process:
    """A server that goes on between its turns, asleep. Its children are stopped with it: a group of its own."""

    def __init__(self, argv, **options):
        self.process = subprocess.Popen(argv, start_new_session=True, **options)

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def resume(self):
        self.signal(signal.SIGCONT)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def end(self):
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()


class Batches:
    """What is measured of a peer that takes any number of requests at once; run() gives the seconds for them."""

    def measure(self, what):
        if what == "prefill":
            count, length = PREFILL
            return count * length / self.run(count, length, 1)
        if what.startswith("decode"):
            batch = int(what.split()[1])
            first = self.run(batch, 128, 1)
            return batch * output / (self.run(batch, 128, output + 1) - first)
        return self.run(requests, 128, 128)


class Evenflow(Process, Batches):
    def __init__(self, options):
        self.path, self.seed = os.path.join(tempfile.mkdtemp(dir=work), "s"), 0
        ready, write = os.pipe()
        super().__init__([f"{build}/bin/evenflow", "serve", model, "--socket", self.path, "--log-level", "warn", "--ready-fd", str(write),
                          "--no-enable-prefix-caching", "--max-num-seqs", "256", "--kv-memory", "2G"] + options, pass_fds=[write])
        os.close(write)
        if not os.read(ready, 1):
            raise RuntimeError("evenflow did not start")
        os.close(ready)

    def run(self, count, length, out):
        self.seed += 1
        done = subprocess.run([f"{build}/bin/evenflow", "bench", "--socket", self.path, "--num-prompts", str(count), "--max-concurrency",
                               str(count), "--input-len", str(length), "--output-len", str(out), "--seed", str(self.seed), "--json"],
                              check=True, stdout=subprocess.PIPE, timeout=seconds_max)
        result = json.loads(done.stdout)
        if result["completed"] != count:
            raise RuntimeError(f"evenflow answered {result['completed']} of {count}")
        return result["duration"]


class OpenVino(Process, Batches):
    def __init__(self):
        super().__init__([f"{folder}/venv/bin/python", f"{here}/bench-openvino.py", model], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("OpenVINO ended; its last words are above")
        return json.loads(line)["seconds"]

    def run(self, count, length, out):
        print(json.dumps([count, length, out]), file=self.process.stdin, flush=True)
        return self.answer()


class Llama(Process):
    """llama.cpp's own programs start anew for every measurement; its server goes on."""

    def __init__(self):
        self.bin, self.q4_0 = f"{folder}/llama/build/bin", f"{folder}/q4_0.gguf"
        if not os.path.exists(self.q4_0):
            f32 = f"{folder}/f32.gguf"
            for argv in ([model, f32, "F32"], ["--token-embedding-type", "q8_0", f32, self.q4_0 + ".new", "Q4_0"]):
                subprocess.run([f"{self.bin}/llama-quantize", "--allow-requantize"] + argv, check=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
            os.remove(f32)
            os.rename(self.q4_0 + ".new", self.q4_0)
        self.path = os.path.join(work, "llama.sock")
        super().__init__([f"{self.bin}/llama-server", "-m", self.q4_0, "-t", "2", "-tb", "2", "-np", "32", "-c", "16384", "--host",
                          self.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.time() + 120
        while b"200 OK" not in self.ask("GET", "/health", b""):
            if self.process.poll() is not None or time.time() > end:
                raise RuntimeError("llama-server did not start")
            time.sleep(0.1)

    def ask(self, method, path, body):
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(self.path)
            except OSError:
                return b""
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def one(self, seed):
        draw = random.Random(seed)
        answer = self.ask("POST", "/completion", json.dumps({
            "prompt": [draw.randrange(1000, 40000) for _ in range(128)], "n_predict": 128, "ignore_eos": True, "temperature": 0,
            "cache_prompt": False}).encode())
        if b"200 OK" not in answer[:64]:
            raise RuntimeError(f"llama-server: {answer[:200]}")

    def tool(self, name, options):
        done = subprocess.run([f"{self.bin}/{name}", "-m", self.q4_0, "-t", "2"] + options, check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, timeout=seconds_max)
        return done.stdout

    def measure(self, what):
        if what == "prefill":
            return json.loads(self.tool("llama-bench", ["-p", "512", "-n", "0", "-r", "1", "-o", "json"]))[0]["avg_ts"]
        if what.startswith("decode"):
            batch = int(what.split()[1])
            lines = self.tool("llama-batched-bench", ["-c", str(batch * (130 + output)), "-npp", "128", "-ntg", str(output), "-npl",
                                                      str(batch), "--output-format", "jsonl"]).splitlines()
            return next(json.loads(line)["speed_tg"] for line in lines if line.startswith("{"))
        begin = time.time()
        with concurrent.futures.ThreadPoolExecutor(requests) as pool:
            list(pool.map(self.one, range(requests)))
        return time.time() - begin


KINDS = {"evenflow": lambda: Evenflow(["-p", "2"]), "evenflow-threads": lambda: Evenflow(["-p", "1", "--threads-per-stage", "2"]),
         "evenflow-unlent": lambda: Evenflow(["-p", "2", "--lone-threads", "1"]),
         "llama": Llama, "openvino": OpenVino}


def table(seen):
    print(f"{'medians of (rounds)':20s}" + "".join(f"{what:>20s}" for what in MEASURES))
    for name, row in seen.items():
        print(f"{name:20s}" + "".join(f"{statistics.median(v):14.1f} ({len(v):2d}) " if v else f"{'no time':>20s}" for v in row.values()))
    others = [row for name, row in seen.items() if not name.startswith("evenflow")]
    for name, row in seen.items():
        if not name.startswith("evenflow") or not others:
            continue
        cells = []
        for what in MEASURES:
            theirs = [statistics.median(other[what]) for other in others if other[what]]
            if not row[what] or not theirs:
                cells.append(f"{'-':>20s}")
            elif what == MEASURES[-1]:
                cells.append(f"{min(theirs) / statistics.median(row[what]):19.2f}x")
            else:
                cells.append(f"{statistics.median(row[what]) / max(theirs):19.2f}x")
        print(f"{name + ' / best':20s}" + "".join(cells))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-peers: ended before its time"))  # and what was started ends as well
    unknown = [name for name in names.split(",") if name not in KINDS]
    if unknown:
        sys.exit(f"bench-peers: no peer {unknown[0]!r}; there are {', '.join(KINDS)}")
    begin, peers, seen = time.time(), {}, {}
    try:
        for name in names.split(","):
            peers[name] = KINDS[name]()
            seen[name] = {what: [] for what in MEASURES}
            print(f"{name} started", file=sys.stderr)
            peers[name].measure("decode 8")  # warm
            peers[name].pause()
        for number in range(rounds):
            for what in MEASURES:
                for name, peer in peers.items():
                    last = seen[name][what][-1:]
                    needed = last[0] if last and what == MEASURES[-1] else 0
                    if time.time() - begin + needed > seconds_max:
                        continue
                    peer.resume()
                    seen[name][what].append(peer.measure(what))
                    peer.pause()
                    print(f"{time.time() - begin:4.0f} s, round {number + 1} of {rounds}, {name}, {what}: {seen[name][what][-1]:.1f}",
                          file=sys.stderr)
    finally:
        for peer in peers.values():
            peer.end()
        shutil.rmtree(work)
        table(seen)


main()
