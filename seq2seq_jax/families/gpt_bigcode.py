"""GPT-BigCode (transformers.GPTBigCodeModel, GPTBigCodeForCausalLM): GPT-2 with multi-query attention.

The class of transformers 5.23 fails with cross-attention, so its formula (queries of all heads, keys and values as in
self-attention) is followed.
"""

from dataclasses import replace

from seq2seq_jax.families import gpt2
from seq2seq_jax.families.rules import fused_in, linear_out, linear_rules


def from_hf(hf, role):
    return {**gpt2.from_hf(hf, role), "num_kv_heads": 1 if hf["multi_query"] else hf["n_head"]}


def rules(config):
    layer, flax, h, d = "h.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    own, cross, kv = f"{flax}/self_attention", f"{flax}/cross_attention", config.num_kv_heads
    table, qkv = gpt2.outer_rules(config), fused_in((h, kv, kv), d, per_head=kv == h)
    table += gpt2.fused(f"{layer}.attn.c_attn", own, ("query", "key", "value"), qkv)
    table += linear_rules(f"{layer}.attn.c_proj", f"{own}/out", linear_out(h, d))
    table += linear_rules(f"{layer}.mlp.c_fc", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.mlp.c_proj", f"{flax}/mlp/down")
    if config.cross_attention_size is not None:
        there = f"{layer}.crossattention"
        table += gpt2.fused(f"{there}.q_attn", cross, ("query",), fused_in((h,), d))
        table += gpt2.fused(f"{there}.c_attn", cross, ("key", "value"), fused_in((kv, kv), d))
        table += linear_rules(f"{there}.c_proj", f"{cross}/out", linear_out(h, d))
    return table


MORE = {"activation_function": "gelu_pytorch_tanh", "multi_query": True}
DEFAULTS = {k: v for k, v in {**gpt2.DEFAULTS, **MORE}.items() if k != "scale_attn_by_inverse_layer_idx"}
FAMILY = replace(gpt2.FAMILY, name="gpt_bigcode", defaults={"gpt_bigcode": DEFAULTS}, from_hf=from_hf, rules=rules)
