"""Writes the small model files of tests/corpus/gguf: make_gguf_corpus.py FOLDER (needs the Python packages numpy and gguf 0.19)."""
import gguf, numpy as np, sys
folder=sys.argv[1]
def vocab(w, kind):
    w.add_tokenizer_model(kind)
    if kind=="gpt2":
        w.add_tokenizer_pre("llama-bpe")
        w.add_token_list(["a","b","ab","c","Ġ","Ġab","<end>","\u0100"]); w.add_token_types([1]*6+[3,1]); w.add_token_merges(["a b","Ġ ab"])
    else:
        w.add_tokenizer_pre("default")
        w.add_token_list(["<unk>","<s>","</s>","<0x0A>","▁","a","b","ab","▁ab","  "]); w.add_token_types([2,3,3,6,1,1,1,1,1,4]); w.add_token_scores([0.,0.,0.,0.,-1.,-2.,-2.,-1.,-.5,-9.])
        w.add_bos_token_id(1)
    w.add_eos_token_id(2)
def model(name, arch, kind, dtype):
    w=gguf.GGUFWriter(f"{folder}/{name}", arch); r=np.random.default_rng(1)
    n=8 if kind=="gpt2" else 10
    w.add_block_count(1); w.add_context_length(64); w.add_embedding_length(16); w.add_feed_forward_length(16); w.add_head_count(1)
    w.add_layer_norm_rms_eps(1e-5)
    if arch=="gemma3": w.add_sliding_window(8)
    vocab(w,kind)
    t=lambda name,*s: w.add_tensor(name, r.standard_normal(s).astype(np.float32 if len(s)==1 else dtype))
    t("token_embd.weight",n,16); t("output_norm.weight",16)
    for x in ["attn_norm","ffn_norm"]+(["attn_q_norm","attn_k_norm","post_attention_norm","post_ffw_norm"] if arch=="gemma3" else []): t(f"blk.0.{x}.weight",16)
    for x in ["attn_q","attn_k","attn_v","attn_output","ffn_gate","ffn_up","ffn_down"]: t(f"blk.0.{x}.weight",16,16)
    if arch=="qwen2": t("blk.0.attn_q.bias",16)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
model("qwen2","qwen2","gpt2",np.float16); model("gemma3","gemma3","llama",np.float16)
for k in ("gpt2","llama"):
    w=gguf.GGUFWriter(f"{folder}/vocabulary-{k}","llama"); vocab(w,k); w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
