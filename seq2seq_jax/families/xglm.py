"""XGLM (transformers.XGLMForCausalLM): BART's layers with pre-norm, and its own sinusoidal positions."""

from seq2seq_jax.families.rules import Family, norm_rules, rule
from seq2seq_jax.families.shared import bart_layer_rules

FIELDS = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "hidden_size": "d_model",
    "intermediate_size": "ffn_dim",
    "num_layers": "num_layers",
    "num_heads": "attention_heads",
    "activation": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "initializer_range": "init_std",
}


def from_hf(hf, role):
    settings = {ours: hf[theirs] for ours, theirs in FIELDS.items()}
    scale = hf["d_model"] ** 0.5 if hf["scale_embedding"] else 1.0
    settings.update(norm_eps=1e-5, norm_position="pre", embedding_norm=False, final_norm=True, embedding_scale=scale)
    settings.update(positions="sinusoidal_wide", position_offset=2, causal=True)
    return {**settings, "head": role == "decoder", "tie_head": hf["tie_word_embeddings"]}


def rules(config):
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [rule("embed_tokens.weight", "embeddings/token/embedding", also=tied)]
    table += bart_layer_rules(config)
    table += norm_rules("layer_norm", "final_norm")
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


SIZES = {"vocab_size": 256008, "max_position_embeddings": 2048, "d_model": 1024, "ffn_dim": 4096, "num_layers": 24}
RATES = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "init_std": 0.02}
MORE = {"attention_heads": 16, "activation_function": "gelu", "scale_embedding": True, "tie_word_embeddings": True}
TOKENS = {"decoder_start_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers"}
FAMILY = Family(
    name="xglm",
    defaults={"xglm": {**SIZES, **RATES, **MORE, **TOKENS}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "model."), "decoder": ("model.", "")},
    ignored=(r"embed_positions\.weights",),
    aliases=ALIASES,
    renamed={**ALIASES, "intermediate_size": "ffn_dim"},
)
