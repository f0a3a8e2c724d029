"""bench-openvino.py MODEL: OpenVINO GenAI for bench-peers.py. A line [requests, input, output] in, {"seconds": x} out; one at the start."""
import json
import random
import sys
import time

import numpy
import openvino
import openvino_genai

scheduler = openvino_genai.SchedulerConfig()
scheduler.cache_size = 4  # GB
scheduler.max_num_batched_tokens = 2048
scheduler.max_num_seqs = 256
scheduler.enable_prefix_caching = False
scheduler.dynamic_split_fuse = True
pipeline = openvino_genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {})
draw, number = random.Random(1), 0


def run(count, length, out):
    global number
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = out
    config.ignore_eos, config.do_sample = True, False
    handles, begin = [], time.perf_counter()
    for _ in range(count):
        number += 1
        prompt = numpy.array([[draw.randrange(1000, 40000) for _ in range(length)]], dtype=numpy.int64)
        handles.append(pipeline.add_request(number, openvino.Tensor(prompt), config))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    seconds = time.perf_counter() - begin
    for handle in handles:
        if len(handle.read_all()[0].generated_ids) < out - 1:
            raise RuntimeError("an answer is too short")
    return seconds


print(json.dumps({"seconds": run(2, 64, 8)}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": run(*json.loads(line))}), flush=True)
