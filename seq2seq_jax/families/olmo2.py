"""OLMo 2 (transformers.Olmo2Model, Olmo2ForCausalLM): LLaMA with norms after the blocks, and of queries and keys."""

from dataclasses import replace

from seq2seq_jax.families import llama


def from_hf(hf, role):
    settings = llama.from_hf(hf, role)
    settings.update(norm_position="res_post", query_key_norm=True, query_key_norm_all_heads=True)
    return settings


POST_NORMS = {"self_attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}


def rules(config):
    return llama.rules(config, norms=None, post_norms=POST_NORMS)


TOKENS = {"pad_token_id": 1, "eos_token_id": 50279, "rms_norm_eps": 1e-5, "attention_bias": False}
FAMILY = replace(
    llama.FAMILY,
    name="olmo2",
    defaults={"olmo2": llama.defaults(50304, 4096, 11008, 32, 32, None, 2048, **TOKENS)},
    from_hf=from_hf,
    rules=rules,
)
