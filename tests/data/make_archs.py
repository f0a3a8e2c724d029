#!/usr/bin/env python3
"""Writes archs/*.gguf, tiny random models of every architecture, and archs/*.json, what `transformers` says about each.

Usage: make_archs.py [FOLDER]     (needs the Python packages torch 2.15, transformers 4.57, numpy and gguf 0.19)

{"tokens": [ids], "logits": [[...] for every token], "half_logits": likewise}: a float32 pass on the CPU, eager attention; then
the same with K and V rounded to float16, as the engine stores them, so that what is left is only the order of sums. The weights are float32 in
the file, in its names and order of rows: "llama" rotates neighbouring pairs, so its Q and K rows are interleaved, and
Gemma's norms are stored with the 1 that its code adds.
"""
import json
import os
import sys

import gguf
import numpy as np
import torch
import transformers

VOCABULARY, WIDTH, INNER, TOKENS = 64, 32, 48, 24


def common(**more):
    return dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=64, attn_implementation="eager", **more)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
MODELS = {
    "llama": ("llama", transformers.LlamaConfig(**common(tie_word_embeddings=True))),
    "llama3": ("llama", transformers.LlamaConfig(**common(rope_theta=500000.0, rope_scaling=LLAMA3))),
    "llama-linear": ("llama", transformers.LlamaConfig(**common(rope_scaling=dict(rope_type="linear", factor=4.0)))),
    "mistral": ("llama", transformers.MistralConfig(**common(head_dim=32, sliding_window=7))),
    "qwen2": ("qwen2", transformers.Qwen2Config(**common(tie_word_embeddings=True, rope_scaling=YARN))),
    "qwen3": ("qwen3", transformers.Qwen3Config(**common(head_dim=32, rope_theta=1e6))),
    "gemma3": ("gemma3", transformers.Gemma3TextConfig(**{**common(
        head_dim=16, query_pre_attn_scalar=16, sliding_window=8, rope_theta=1e6, rope_local_base_freq=10000.0,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        layer_types=["sliding_attention", "sliding_attention", "full_attention"]), "num_hidden_layers": 3})),
}
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}


def file_name(name, arch):
    """The GGUF name of a weight of transformers'."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    place, kind = rest.rsplit(".", 1)
    if place == "post_attention_layernorm":
        place = "post_attention_norm" if arch == "gemma3" else "ffn_norm"
    place = {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}.get(place, place)
    return f"blk.{layer}.{NAMES.get(place, place)}.{kind}"


def interleave(weight, heads):
    """Rows of pairs half a head apart become neighbours."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write(folder, name, arch, config):
    torch.manual_seed(len(name) + VOCABULARY)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight_name, weight in model.named_parameters():
        is_norm = "norm" in weight_name
        torch.nn.init.normal_(weight, 0.0 if arch == "gemma3" or not is_norm else 1.0, 0.2 if is_norm else 0.12)
    tokens = torch.randint(0, VOCABULARY, (1, TOKENS))
    with torch.no_grad():
        logits = model(tokens).logits[0]
        module = sys.modules[type(model).__module__]
        plain = module.eager_attention_forward
        module.eager_attention_forward = lambda layer, query, key, value, *rest, **more: plain(
            layer, query, key.half().float(), value.half().float(), *rest, **more)
        half_logits = model(tokens).logits[0]
        module.eager_attention_forward = plain
    assert not torch.equal(logits, half_logits)

    writer = gguf.GGUFWriter(os.path.join(folder, name + ".gguf"), arch)
    head_dim = getattr(config, "head_dim", None) or WIDTH // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_string(f"{arch}.rope.scaling.type", scaling["rope_type"])
        writer.add_float32(f"{arch}.rope.scaling.factor", scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_uint32(f"{arch}.rope.scaling.original_context_length", scaling["original_max_position_embeddings"])
    if scaling.get("rope_type") == "llama3":
        plain = config.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    for weight_name, weight in model.state_dict().items():
        if weight_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data, target = weight.numpy().copy(), file_name(weight_name, arch)
        if arch == "llama" and ("attn_q." in target or "attn_k." in target):
            data = interleave(data, config.num_attention_heads if "attn_q." in target else config.num_key_value_heads)
        if arch == "gemma3" and "norm" in target:
            data = data + 1
        writer.add_tensor(target, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as file:
        rows = lambda values: [[float(f"{value:.7g}") for value in row] for row in values.tolist()]
        json.dump({"tokens": tokens[0].tolist(), "logits": rows(logits), "half_logits": rows(half_logits)}, file,
                  separators=(",", ":"))
        file.write("\n")
    print(name, "largest logit", float(logits.abs().max()), "by float16", float((logits - half_logits).abs().max()))


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "archs")
    os.makedirs(folder, exist_ok=True)
    for name, (arch, config) in MODELS.items():
        write(folder, name, arch, config)


if __name__ == "__main__":
    main()
