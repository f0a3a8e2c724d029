#!/usr/bin/env python3
"""Writes page_nll.json: what a plain float64 pass over the model's dequantised weights says about page.txt.

An independent implementation of GGUF, of the Llama forward pass and (through the tokenizers library) of the byte-level
BPE, made to compare the engine with. It shares no code with the engine. Needs numpy and tokenizers:

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install numpy tokenizers
    /tmp/reference/bin/python tests/data/reference_nll.py models/SmolLM2-135M-Instruct.Q4_1.gguf

{"tokens": [ids], "nll": [...]}: nll[i] is -ln p(token i+1 | tokens 0..i), in nats; nothing is put before the first token.

With --experiment it prints instead what rounding activations to int8 costs: the mean absolute difference of the nll per
token, for plain scales and for scales with an offset (as the kernels do) in each place of the pass.
"""
import json
import os
import struct
import sys

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
    raise SystemExit(f"tensor type {kind} is not one that this script reads")


BLOCK_BYTES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34)}


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


def tokenize(meta, text):
    from tokenizers import Tokenizer, models, pre_tokenizers
    vocab = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer.encode(text).ids


def exact(x, place):
    return x


def rms_norm(x, gain, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def forward_nll(meta, tensors, tokens, rounding=exact, kv=lambda x: x):
    """rounding(x, place) is applied to what enters each product: qkv, out, gate_up, down, head."""
    get = lambda key, default=None: meta.get("llama." + key, default)
    layers, heads = get("block_count"), get("attention.head_count")
    kv_heads = get("attention.head_count_kv", heads)
    width = get("embedding_length")
    head_dim = get("attention.key_length", width // heads)
    eps, base = get("attention.layer_norm_rms_epsilon"), get("rope.freq_base", 10000.0)
    n = len(tokens)

    angle = np.outer(np.arange(n), float(base) ** (-np.arange(0, head_dim, 2) / head_dim))
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]

    def rotate(x):  # (n, heads, head_dim); this architecture rotates neighbours
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    embedding = tensors["token_embd.weight"]
    mask = np.triu(np.full((n, n), -np.inf), 1)
    x = embedding[tokens]
    for layer in range(layers):
        w = lambda name: tensors[f"blk.{layer}.{name}.weight"]
        h = rounding(rms_norm(x, w("attn_norm"), eps), "qkv")
        q = rotate((h @ w("attn_q").T).reshape(n, heads, head_dim))
        k = kv(rotate((h @ w("attn_k").T).reshape(n, kv_heads, head_dim)))
        v = kv((h @ w("attn_v").T).reshape(n, kv_heads, head_dim))
        mixed = np.empty((n, heads, head_dim))
        for head in range(heads):
            shared = head // (heads // kv_heads)
            score = q[:, head] @ k[:, shared].T / np.sqrt(head_dim) + mask
            score = np.exp(score - score.max(axis=-1, keepdims=True))
            mixed[:, head] = score / score.sum(axis=-1, keepdims=True) @ v[:, shared]
        x = x + rounding(mixed.reshape(n, heads * head_dim), "out") @ w("attn_output").T
        h = rounding(rms_norm(x, w("ffn_norm"), eps), "gate_up")
        gate, up = h @ w("ffn_gate").T, h @ w("ffn_up").T
        x = x + rounding(gate / (1 + np.exp(-gate)) * up, "down") @ w("ffn_down").T
    h = rounding(rms_norm(x, tensors["output_norm.weight"], eps), "head")
    logits = h @ tensors.get("output.weight", embedding).T
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return log_sum[:-1] - logits[np.arange(n - 1), tokens[1:]]


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
        got = forward_nll(meta, tensors, tokens, rounding, kv)
        print(f"{name:32s} mean |d| {np.mean(np.abs(got - truth)):.4f}  mean {np.mean(got - truth):+.4f}  "
              f"max {np.max(np.abs(got - truth)):.3f}", flush=True)

    report("f16 KV only", exact)
    report("int8 by 32", lambda x, at: int8(x, 32))
    report("int8 by 16", lambda x, at: int8(x, 16))
    report("int8 with offset by 32", lambda x, at: int8_offset(x, 32))
    for place in ["qkv", "out", "gate_up", "down", "head"]:
        report(f"int8 by 32, {place} only", lambda x, at: int8(x, 32) if at == place else x)
        report(f"int8 with offset, {place} only", lambda x, at: int8_offset(x, 32) if at == place else x)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if len(paths) != 1:
        raise SystemExit("usage: reference_nll.py [--experiment] MODEL.gguf")
    meta, tensors = read_model(paths[0])
    with open(os.path.join(here, "page.txt"), encoding="utf-8") as file:
        tokens = tokenize(meta, file.read())
    nll = forward_nll(meta, tensors, tokens)
    print(f"{len(tokens)} tokens, mean nll {np.mean(nll):.4f} nats", flush=True)
    if "--experiment" in sys.argv:
        experiment(meta, tensors, tokens, nll)
        return
    with open(os.path.join(here, "page_nll.json"), "w", encoding="utf-8") as file:
        json.dump({"tokens": tokens, "nll": [round(float(value), 6) for value in nll]}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
