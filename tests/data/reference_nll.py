#!/usr/bin/env python3
"""Writes page_nll.json: what a plain float64 pass over the model's dequantised weights says about page.txt.

An independent implementation of GGUF, of the forward passes of Llama and Gemma 3, of SentencePiece's merges and (through the
tokenizers library) of the byte-level BPE, made to compare the engine with. It shares no code with the engine. Needs numpy
and tokenizers:

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install numpy tokenizers
    /tmp/reference/bin/python tests/data/reference_nll.py models/SmolLM2-135M-Instruct.Q4_1.gguf
    /tmp/reference/bin/python tests/data/reference_nll.py models/gemma-3-270m-q4_k_m.gguf gemma_page_nll.json

{"tokens": [ids], "nll": [...], "top1": [ids], "margin": [...]}: nll[i] is -ln p(token i+1 | tokens 0..i), in nats; top1[i] the
likeliest token there and margin[i] how far its logit is above the next one. BOS comes first where the model says so.

With --logits MODEL.gguf PROGRAM IDS (numpy alone) it prints how far the distributions that PROGRAM (tests/main_logits.c) gives for the ids in
the file IDS are from those of the float64 pass: `make bench-accuracy`.

With --experiment it prints instead what rounding activations to int8 costs: the mean absolute difference of the nll per
token, for plain scales and for scales with an offset (as the kernels do) in each place of the pass.
"""
import json
import os
import struct
import subprocess
import sys
import threading

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Reader:
    def __init__(self, path):
        self.data = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0

    def scalar(self, code):
        size = struct.calcsize(code)
        value = struct.unpack("<" + code, self.data[self.at:self.at + size].tobytes())[0]
        self.at += size
        return value

    def string(self):
        size = self.scalar("Q")
        value = self.data[self.at:self.at + size].tobytes()
        self.at += size
        return value.decode("utf-8")

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            element = self.scalar("I")
            return [self.value(element) for _ in range(self.scalar("Q"))]
        return self.scalar(SCALARS[kind])


def dequantise(raw, kind, count):
    """Weights as float64, straight from the definitions of the formats."""
    if kind == 0:
        return raw.view(np.float32).astype(np.float64)
    if kind == 1:
        return raw.view(np.float16).astype(np.float64)
    if kind == 8:  # f16 scale, 32 int8
        blocks = raw.reshape(count // 32, 34)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        return (scale * blocks[:, 2:].copy().view(np.int8)).reshape(-1)
    if kind in (2, 3):  # f16 scale, (Q4_1: f16 minimum,) 16 bytes: low nibbles are elements 0..15, high ones 16..31
        head = 2 if kind == 2 else 4
        blocks = raw.reshape(count // 32, head + 16)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        nibbles = np.concatenate([blocks[:, head:] & 15, blocks[:, head:] >> 4], axis=1).astype(np.float64)
        if kind == 2:
            return (scale * (nibbles - 8)).reshape(-1)
        return (scale * nibbles + blocks[:, 2:4].copy().view(np.float16).astype(np.float64)).reshape(-1)
    if kind in (6, 7):  # f16 scale, (Q5_1: f16 minimum,) 32 fifth bits, 16 bytes as above
        head = 2 if kind == 6 else 4
        blocks = raw.reshape(count // 32, head + 20)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        fifth = np.unpackbits(blocks[:, head:head + 4], axis=1, bitorder="little")
        low = np.concatenate([blocks[:, head + 4:] & 15, blocks[:, head + 4:] >> 4], axis=1)
        values = low.astype(np.float64) + 16.0 * fifth
        if kind == 6:
            return (scale * (values - 16)).reshape(-1)
        return (scale * values + blocks[:, 2:4].copy().view(np.float16).astype(np.float64)).reshape(-1)
    if kind == 12:  # f16 scale and minimum of eight groups of 32, 12 bytes with 6 bits for each of 16, 128 bytes
        blocks = raw.reshape(count // 256, 144)
        halves = blocks[:, :4].copy().view(np.float16).astype(np.float64)
        packed = blocks[:, 4:16].astype(int)
        out = np.empty((count // 256, 8, 32))
        for j in range(8):
            if j < 4:
                scale, minimum = packed[:, j] & 63, packed[:, j + 4] & 63
            else:
                scale = packed[:, j + 4] & 15 | packed[:, j - 4] >> 6 << 4
                minimum = packed[:, j + 4] >> 4 | packed[:, j] >> 6 << 4
            run = blocks[:, 16 + j // 2 * 32:48 + j // 2 * 32]
            out[:, j] = (halves[:, :1] * scale[:, None] * (run >> 4 if j % 2 else run & 15)
                         - halves[:, 1:] * minimum[:, None])
        return out.reshape(-1)
    if kind == 14:  # low four bits, high two bits, scales of 16 groups of 16, f16 scale
        blocks = raw.reshape(count // 256, 210)
        scale = blocks[:, 208:].copy().view(np.float16).astype(np.float64)
        groups = blocks[:, 192:208].copy().view(np.int8).astype(np.float64)
        out = np.empty((count // 256, 8, 32))
        for half in range(2):
            low, high = blocks[:, 64 * half:64 * half + 64], blocks[:, 128 + 32 * half:160 + 32 * half]
            for quarter in range(4):
                nibbles = low[:, 32 * (quarter % 2):32 * (quarter % 2) + 32] >> 4 * (quarter // 2) & 15
                out[:, 4 * half + quarter] = (nibbles | (high >> 2 * quarter & 3) << 4).astype(np.float64) - 32
        return (out.reshape(-1, 16, 16) * groups[:, :, None] * scale[:, :, None]).reshape(-1)
    raise SystemExit(f"tensor type {kind} is not one that this script reads")


BLOCK_BYTES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144),
               14: (256, 210)}


def read_model(path):
    reader = Reader(path)
    assert reader.data[:4].tobytes() == b"GGUF"
    reader.at = 4
    assert reader.scalar("I") in (2, 3)
    tensor_count, entry_count = reader.scalar("Q"), reader.scalar("Q")
    meta = {}
    for _ in range(entry_count):
        key = reader.string()
        meta[key] = reader.value(reader.scalar("I"))
    infos = []
    for _ in range(tensor_count):
        name = reader.string()
        shape = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
        infos.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    align = meta.get("general.alignment", 32)
    start = (reader.at + align - 1) // align * align
    tensors = {}
    for name, shape, kind, offset in infos:
        count = int(np.prod(shape))
        block, size = BLOCK_BYTES[kind]
        raw = np.array(reader.data[start + offset:start + offset + count // block * size])
        tensors[name] = dequantise(raw, kind, count).reshape(shape[::-1])
    return meta, tensors


def merge_by_score(meta, text):
    """SentencePiece's merges as plainly as possible: best score first, the leftmost among equals."""
    ids = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    scores = meta["tokenizer.ggml.scores"]
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [(-scores[ids[a + b]], at) for at, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in ids]
        if not pairs:
            break
        at = min(pairs)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
    return [index for symbol in symbols
            for index in ([ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()])]


def tokenize(meta, text):
    if meta["tokenizer.ggml.model"] == "llama":
        # user-defined tokens (here: runs of line breaks or spaces, and tags) are cut out first, the longest ones
        import re
        tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
        own = {token: index for index, token in enumerate(tokens) if types[index] == 4}
        cut = re.split("(" + "|".join(map(re.escape, sorted(own, key=len, reverse=True))) + ")", text)
        ids = [index for part in cut if part for index in ([own[part]] if part in own else merge_by_score(meta, part))]
        return [meta["tokenizer.ggml.bos_token_id"]] * meta["tokenizer.ggml.add_bos_token"] + ids
    from tokenizers import Tokenizer, models, pre_tokenizers
    vocab = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer.encode(text).ids


ROWS = 512  # that are computed together


def exact(x, place):
    return x


def rms_norm(x, gain, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def forward_logits(meta, tensors, tokens, rounding=exact, kv=lambda x: x):
    """One row of logits after the other. rounding(x, place) is applied to what enters each product: qkv, out, gate_up, down,
    head."""
    arch = meta["general.architecture"]
    get = lambda key, default=None: meta.get(f"{arch}.{key}", default)
    layers, heads = get("block_count"), get("attention.head_count")
    kv_heads = get("attention.head_count_kv", heads)
    width = get("embedding_length")
    head_dim = get("attention.key_length", width // heads)
    eps = get("attention.layer_norm_rms_epsilon")
    n, is_gemma = len(tokens), arch == "gemma3"

    def rotate(x, base):  # (n, heads, head_dim); llama rotates neighbours, gemma3 what is half a head apart
        angle = np.outer(np.arange(n), float(base) ** (-np.arange(0, head_dim, 2) / head_dim))
        cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
        half = head_dim // 2
        one, other = (slice(0, half), slice(half, None)) if is_gemma else (slice(0, None, 2), slice(1, None, 2))
        out = np.empty_like(x)
        out[..., one], out[..., other] = x[..., one] * cos - x[..., other] * sin, x[..., one] * sin + x[..., other] * cos
        return out

    embedding = tensors["token_embd.weight"]
    distance = np.arange(n)[:, None] - np.arange(n)
    x = embedding[tokens] * (np.sqrt(width) if is_gemma else 1)
    for layer in range(layers):
        w = lambda name: tensors[f"blk.{layer}.{name}.weight"]
        has_window = is_gemma and layer % 6 != 5
        base = 10000.0 if has_window else get("rope.freq_base", 10000.0)
        reach = get("attention.sliding_window") if has_window else n
        mask = np.where((distance >= 0) & (distance < reach), 0, -np.inf)
        h = rounding(rms_norm(x, w("attn_norm"), eps), "qkv")
        q = (h @ w("attn_q").T).reshape(n, heads, head_dim)
        k = (h @ w("attn_k").T).reshape(n, kv_heads, head_dim)
        if is_gemma:
            q, k = rms_norm(q, w("attn_q_norm"), eps), rms_norm(k, w("attn_k_norm"), eps)
        q, k = rotate(q, base), kv(rotate(k, base))
        v = kv((h @ w("attn_v").T).reshape(n, kv_heads, head_dim))
        mixed = np.empty((n, heads, head_dim))
        for head in range(heads):
            shared = head // (heads // kv_heads)
            for first in range(0, n, ROWS):  # none of them attends to what comes later
                rows, seen = slice(first, first + ROWS), slice(0, first + ROWS)
                score = q[rows, head] @ k[seen, shared].T / np.sqrt(head_dim) + mask[rows, seen]
                score = np.exp(score - score.max(axis=-1, keepdims=True))
                mixed[rows, head] = score / score.sum(axis=-1, keepdims=True) @ v[seen, shared]
        branch = rounding(mixed.reshape(n, heads * head_dim), "out") @ w("attn_output").T
        x = x + (rms_norm(branch, w("post_attention_norm"), eps) if is_gemma else branch)
        h = rounding(rms_norm(x, w("ffn_norm"), eps), "gate_up")
        gate, up = h @ w("ffn_gate").T, h @ w("ffn_up").T
        if is_gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate ** 3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        branch = rounding(gate * up, "down") @ w("ffn_down").T
        x = x + (rms_norm(branch, w("post_ffw_norm"), eps) if is_gemma else branch)
    h = rounding(rms_norm(x, tensors["output_norm.weight"], eps), "head")
    head = tensors.get("output.weight", embedding)
    for first in range(0, n, 32):  # all logits of a large vocabulary are large
        yield from h[first:first + 32] @ head.T


def forward_nll(meta, tensors, tokens, rounding=exact, kv=lambda x: x):
    nll, top1, margin = [], [], []
    for at, logits in zip(range(len(tokens) - 1), forward_logits(meta, tensors, tokens, rounding, kv)):
        second, first = np.argpartition(logits, -2)[-2:]
        if logits[second] > logits[first]:
            second, first = first, second
        nll.append(np.log(np.exp(logits - logits[first]).sum()) + logits[first] - logits[tokens[at + 1]])
        top1.append(int(first))
        margin.append(float(logits[first] - logits[second]))
    return np.array(nll), top1, margin


def int8(x, group):
    """x is about scale * q, q in -127..127."""
    groups = x.reshape(-1, group)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    return (np.round(groups / scale) * scale).reshape(x.shape)


def int8_offset(x, group):
    """x is about offset + scale * q: the range of q covers just what the group holds."""
    groups = x.reshape(-1, group)
    high, low = groups.max(axis=1, keepdims=True), groups.min(axis=1, keepdims=True)
    offset, scale = (high + low) / 2, (high - low) / 254
    scale[scale == 0] = 1
    return (offset + np.round((groups - offset) / scale) * scale).reshape(x.shape)


def experiment(meta, tensors, tokens, truth):
    half = lambda x: x.astype(np.float16).astype(np.float64)

    def report(name, rounding, kv=half):
        got, _, _ = forward_nll(meta, tensors, tokens, rounding, kv)
        print(f"{name:32s} mean |d| {np.mean(np.abs(got - truth)):.4f}  mean {np.mean(got - truth):+.4f}  "
              f"max {np.max(np.abs(got - truth)):.3f}", flush=True)

    report("f16 KV only", exact)
    report("int8 by 32", lambda x, at: int8(x, 32))
    report("int8 by 16", lambda x, at: int8(x, 16))
    report("int8 with offset by 32", lambda x, at: int8_offset(x, 32))
    for place in ["qkv", "out", "gate_up", "down", "head"]:
        report(f"int8 by 32, {place} only", lambda x, at: int8(x, 32) if at == place else x)
        report(f"int8 with offset, {place} only", lambda x, at: int8_offset(x, 32) if at == place else x)


def compare_logits(meta, tensors, tokens, model, program):
    """What the distributions of another program are beside those of the float64 pass. It is given the ids, and gives rows of
    32-bit floats."""
    log_softmax = lambda x: x - x.max() - np.log(np.exp(x - x.max()).sum())
    other = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    threading.Thread(target=lambda: (other.stdin.write(json.dumps(tokens).encode()), other.stdin.close())).start()
    kl, difference, disagreed = [], [], [0.0]
    for at, logits in enumerate(forward_logits(meta, tensors, tokens)):
        theirs = np.frombuffer(other.stdout.read(4 * len(logits)), dtype=np.float32).astype(np.float64)
        ours, theirs = log_softmax(logits), log_softmax(theirs)
        kl.append(np.sum(np.exp(ours) * (ours - theirs)))
        if at + 1 < len(tokens):
            difference.append(theirs[tokens[at + 1]] - ours[tokens[at + 1]])
        if ours.argmax() != theirs.argmax():
            disagreed.append(np.sort(ours)[-1] - np.sort(ours)[-2])
    print(f"{len(kl)} tokens: mean KL {np.mean(kl):.5f} nats (99 % below {np.quantile(kl, 0.99):.4f}), loss per token: mean "
          f"|difference| {np.mean(np.abs(difference)):.4f}, mean {np.mean(difference):+.4f}; likeliest token the same "
          f"{100 * (1 - (len(disagreed) - 1) / len(kl)):.1f} %, never another above a margin of {max(disagreed):.2f}")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if len(paths) not in (1, 2) and "--logits" not in sys.argv:
        raise SystemExit("usage: reference_nll.py [--experiment] MODEL.gguf [FILE] | --logits MODEL.gguf PROGRAM IDS")
    meta, tensors = read_model(paths[0])
    if "--logits" in sys.argv:
        with open(paths[2], encoding="utf-8") as file:
            compare_logits(meta, tensors, json.load(file), paths[0], paths[1])
        return
    with open(os.path.join(here, "page.txt"), encoding="utf-8") as file:
        tokens = tokenize(meta, file.read())
    nll, top1, margin = forward_nll(meta, tensors, tokens)
    print(f"{len(tokens)} tokens, mean nll {np.mean(nll):.4f} nats", flush=True)
    if "--experiment" in sys.argv:
        experiment(meta, tensors, tokens, nll)
        return
    with open(os.path.join(here, paths[1] if len(paths) == 2 else "page_nll.json"), "w", encoding="utf-8") as file:
        round_all = lambda values: [round(float(value), 6) for value in values]
        json.dump({"tokens": tokens, "nll": round_all(nll), "top1": top1, "margin": round_all(margin)}, file,
                  separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
