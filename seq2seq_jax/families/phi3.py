"""Phi-3, Phi-3.5, Phi-4 (transformers.Phi3Model, Phi3ForCausalLM): LLaMA with fused projections, partial rotary."""

from dataclasses import replace

from seq2seq_jax.families import llama
from seq2seq_jax.families.rules import fused_in, fused_rows, rule


def from_hf(hf, role):
    name = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    turns = dict(hf.get(name) or {})
    if turns.get("rope_type", turns.get("type")) in ("su", "yarn"):  # older names, as torch reads them
        hf = {**hf, name: {**turns, "rope_type": "longrope"}}
    settings = llama.from_hf(hf, role)
    # resid_pdrop is the blocks' dropout; torch does not use embd_pdrop either.
    settings.update(dropout=hf["resid_pdrop"], embedding_dropout=0.0)
    return settings


def rules(config):
    """LLaMA's with one tensor for queries, keys and values, and one for gate and up."""
    layer, flax, kv = "layers.{layer}", "layers/{layer}", config.num_kv_heads
    own = tuple(f"{flax}/self_attention/{n}/kernel" for n in ("query", "key", "value"))
    mlp = tuple(f"{flax}/mlp/{n}/kernel" for n in ("gate", "up"))
    table = [r for r in llama.rules(config) if not set(r.flax) & {*own, *mlp}]
    heads = fused_in((config.num_heads, kv, kv), config.head_dim)
    table.append(rule(f"{layer}.self_attn.qkv_proj.weight", own, heads))
    return [*table, rule(f"{layer}.mlp.gate_up_proj.weight", mlp, fused_rows(2))]


ROPE = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}}
RATES = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
TOKENS = {"pad_token_id": 32000, "bos_token_id": 1, "eos_token_id": 32000, "sliding_window": None}
FAMILY = replace(
    llama.FAMILY,
    name="phi3",
    defaults={"phi3": llama.defaults(32064, 3072, 8192, 32, 32, None, 4096, **RATES, **TOKENS) | ROPE},
    from_hf=from_hf,
    rules=rules,
    old_rope={"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
)
