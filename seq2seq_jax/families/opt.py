"""OPT (transformers.OPTModel, OPTForCausalLM): pre-norm; 350m: post-norm, factorized embeddings."""

from seq2seq_jax.families.rules import Family, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import STANDARD, bart_layer_rules, read_fields

FIELDS = {
    **STANDARD,
    "intermediate_size": "ffn_dim",
    "activation": "activation_function",
    "initializer_range": "init_std",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "attention_bias": "enable_bias",
    "attention_out_bias": "enable_bias",
    "mlp_bias": "enable_bias",
    "embedding_size": "word_embed_proj_dim",
}


def from_hf(hf, role):
    hf = {**hf, "word_embed_proj_dim": hf["word_embed_proj_dim"] or hf["hidden_size"]}
    before, narrow = hf["do_layer_norm_before"], hf["word_embed_proj_dim"] != hf["hidden_size"]
    if not hf["layer_norm_elementwise_affine"]:
        raise ValueError("layer_norm_elementwise_affine=False is not built; use an OPT whose norms have parameters")
    if narrow and role == "encoder":
        raise ValueError(
            "an OPT whose word_embed_proj_dim is not its hidden_size does not serve as encoder; use another"
        )
    return read_fields(
        hf,
        FIELDS,
        norm_eps=1e-5,
        norm_position="pre" if before else "post",
        final_norm=before and not hf["_remove_final_layer_norm"],
        embedding_norm=False,
        embedding_projection="tokens",
        embedding_projection_bias=False,
        embedding_dropout=0.0,
        position_offset=2,
        positions_from_mask=True,
        causal=True,
        head=role == "decoder",
        head_projection=narrow and role == "decoder",
        tie_head=hf["tie_word_embeddings"],
    )


def rules(config):
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [
        rule("embed_tokens.weight", "embeddings/token/embedding", also=tied),
        rule("embed_positions.weight", "embeddings/position/embedding"),
    ]
    if config.embedding_size != config.hidden_size:
        table += linear_rules("project_in", "embeddings/projection", bias=False)
    if config.head_projection:
        table += linear_rules("project_out", "head/transform", bias=False)
    table += bart_layer_rules(config)
    table += norm_rules("final_layer_norm", "final_norm") if config.final_norm else []
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


SIZES = {"vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072}
FLAGS = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True}
MORE = {"max_position_embeddings": 2048, "word_embed_proj_dim": None, "layer_norm_elementwise_affine": True}
RATES = {"activation_function": "relu", "dropout": 0.1, "attention_dropout": 0.0, "init_std": 0.02}
TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2, "tie_word_embeddings": True}
FAMILY = Family(
    name="opt",
    defaults={"opt": {**SIZES, **FLAGS, **MORE, **RATES, **TOKENS}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("decoder.", "model.decoder."), "decoder": ("model.decoder.", "decoder.")},
    renamed={"intermediate_size": "ffn_dim"},
    torch_cross=False,
)
