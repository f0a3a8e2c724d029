"""Writes the small model files of tests/corpus/gguf: make_gguf_corpus.py FOLDER (needs the Python packages numpy and gguf 0.19)."""

import sys

import gguf
import numpy as np

FOLDER = sys.argv[1]
TYPE = gguf.GGMLQuantizationType


def add_vocabulary(w, kind):
    w.add_tokenizer_model(kind)
    if kind == "gpt2":
        w.add_tokenizer_pre("llama-bpe")
        w.add_token_list(["a", "b", "ab", "c", "Ġ", "Ġab", "<end>", "\u0100"])
        w.add_token_types([1] * 6 + [3, 1])
        w.add_token_merges(["a b", "Ġ ab"])
    else:
        w.add_tokenizer_pre("default")
        w.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "  "])
        w.add_token_types([2, 3, 3, 6, 1, 1, 1, 1, 1, 4])
        w.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -2.0, -1.0, -0.5, -9.0])
        w.add_bos_token_id(1)
    w.add_eos_token_id(2)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_vocabulary(kind):
    w = gguf.GGUFWriter(f"{FOLDER}/vocabulary-{kind}", "llama")
    add_vocabulary(w, kind)
    finish(w)


def write_model(name, arch, kind, width=16, heads=1, types={}):
    """One layer with heads of 16; a matrix is F16, or of its type in types."""
    w = gguf.GGUFWriter(f"{FOLDER}/{name}", arch)
    random = np.random.default_rng(1)
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(width)
    w.add_feed_forward_length(width)
    w.add_head_count(heads)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-5)
    if arch == "gemma3":
        w.add_sliding_window(8)
    add_vocabulary(w, kind)

    def add(name, *shape):
        if len(shape) == 1:
            w.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
        elif (kind := types.get(name.split(".")[-1])) is None:
            w.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float16))
        else:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = random.integers(0, 60, (shape[0], shape[1] // block * size), dtype=np.uint8)  # small and finite
            w.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    add("token_embd", 8 if kind == "gpt2" else 10, width)
    add("output_norm", width)
    norms = ["attn_norm", "ffn_norm"]
    if arch == "gemma3":
        norms += ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"]
    for x in norms:
        add(f"blk.0.{x}", width)
    for x in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        add(f"blk.0.{x}", 16 if x in ("attn_k", "attn_v") else width, width)
    if arch == "qwen2":
        w.add_tensor("blk.0.attn_q.bias", random.standard_normal(width).astype(np.float32))
    finish(w)


write_vocabulary("gpt2")
write_vocabulary("llama")
write_model("qwen2", "qwen2", "gpt2")
write_model("gemma3", "gemma3", "llama")
write_model("types", "llama", "gpt2", 32, 2, {
    "token_embd": TYPE.BF16, "attn_q": TYPE.Q4_0, "attn_k": TYPE.Q4_1, "attn_v": TYPE.Q5_0, "attn_output": TYPE.Q5_1,
    "ffn_gate": TYPE.Q8_0, "ffn_up": TYPE.IQ4_NL, "ffn_down": TYPE.Q8_0})
