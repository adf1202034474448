"""BART's encoder (transformers.BartEncoder) and decoder (BartForCausalLM), from either half or a whole checkpoint."""

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule

SHARED_FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
    "d_model": "hidden_size",
    "activation_function": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "init_std": "initializer_range",
}


def side_fields(role):
    sizes = {"layers": "num_layers", "ffn_dim": "intermediate_size", "attention_heads": "num_heads"}
    return {**SHARED_FIELDS, **{f"{role}_{theirs}": ours for theirs, ours in sizes.items()}}


def from_hf(hf, role):
    settings = {ours: hf[theirs] for theirs, ours in side_fields(role).items()}
    scale = hf["d_model"] ** 0.5 if hf["scale_embedding"] else 1.0
    settings.update(norm_eps=1e-5, position_offset=2, embedding_scale=scale)
    if role == "decoder":
        settings.update(causal=True, head=True, tie_head=hf["tie_word_embeddings"])
    return settings


def rules(config: TransformerConfig):
    layer, flax = "layers.{layer}", "layers/{layer}"
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    shared = ("model.shared.weight", "shared.weight")
    table = [
        rule("embed_tokens.weight", "embeddings/token/embedding", also=(*shared, *tied)),
        rule("embed_positions.weight", "embeddings/position/embedding"),
        *norm_rules("layernorm_embedding", "embeddings/norm"),
    ]
    blocks = {"self_attn": "self_attention"}
    if config.cross_attention_size is not None:
        blocks["encoder_attn"] = "cross_attention"
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.{n}_proj" for n in ("q", "k", "v", "out")]
        table += attention_rules(config, f"{flax}/{ours}", *names)
        table += norm_rules(f"{layer}.{theirs}_layer_norm", f"{flax}/{ours}_norm")
    table += linear_rules(f"{layer}.fc1", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.fc2", f"{flax}/mlp/down")
    table += norm_rules(f"{layer}.final_layer_norm", f"{flax}/mlp_norm")
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


FAMILY = Family(
    name="bart",
    model_types=("bart",),
    defaults={
        "vocab_size": 50265,
        "max_position_embeddings": 1024,
        "encoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_layers": 12,
        "decoder_ffn_dim": 4096,
        "decoder_attention_heads": 16,
        "activation_function": "gelu",
        "d_model": 1024,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": 0.02,
        "scale_embedding": False,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
        "tie_word_embeddings": True,
    },
    from_hf=from_hf,
    fields={
        "encoder": side_fields("encoder"),
        "decoder": {**side_fields("decoder"), "tie_word_embeddings": "tie_head"},
    },
    rules=rules,
    prefixes={"encoder": ("", "model.encoder.", "encoder."), "decoder": ("model.decoder.", "decoder.")},
    other_part={
        "encoder": (r"(model\.)?decoder\..*", r"lm_head\.weight", r"final_logits_bias"),
        "decoder": (r"(model\.)?encoder\..*", r"final_logits_bias"),
    },
)
