"""GPT-NeoX, Pythia (transformers.GPTNeoXModel, GPTNeoXForCausalLM): partial rotary, attention and MLP in parallel."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, attention_rules, fused_in, linear_out, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import STANDARD, read_fields, rotary

FIELDS = {
    **STANDARD,
    "norm_eps": "layer_norm_eps",
    "attention_bias": "attention_bias",
    "attention_out_bias": "attention_bias",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "parallel_residual": "use_parallel_residual",
}


def from_hf(hf, role):
    turns = rotary(hf, hf["hidden_size"] // hf["num_attention_heads"])
    return read_fields(
        hf,
        FIELDS,
        norm_position="pre",
        embedding_norm=False,
        final_norm=True,
        positions="none",
        padding_idx=None,
        causal=True,
        head=role == "decoder",
        tie_head=hf["tie_word_embeddings"],
        layer_pattern=(LayerSettings(rotary=turns),),
    )


def rules(config):
    layer, flax, h, d = "layers.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    own, head = f"{flax}/self_attention", "embed_out.weight"
    tied = (head, "lm_head.weight") if config.head and config.tie_head else ()
    table = [rule("embed_in.weight", "embeddings/token/embedding", also=tied)]
    table += norm_rules(f"{layer}.input_layernorm", f"{flax}/self_attention_norm")
    table += norm_rules(f"{layer}.post_attention_layernorm", f"{flax}/mlp_norm")
    for theirs, ours in (("weight", "kernel"), ("bias", "bias")) if config.attention_bias else (("weight", "kernel"),):
        paths = tuple(f"{own}/{n}/{ours}" for n in ("query", "key", "value"))
        op = fused_in((h, h, h), d, per_head=True)
        table.append(rule(f"{layer}.attention.query_key_value.{theirs}", paths, op))
    table += linear_rules(f"{layer}.attention.dense", f"{own}/out", linear_out(h, d), bias=config.attention_out_bias)
    table += linear_rules(f"{layer}.mlp.dense_h_to_4h", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.mlp.dense_4h_to_h", f"{flax}/mlp/down")
    table += norm_rules("final_layer_norm", "final_norm")
    if config.cross_attention_size is not None:
        names = [f"{layer}.cross_attn.{n}_proj" for n in ("q", "k", "v", "o")]
        table += attention_rules(config, f"{flax}/cross_attention", *names)
        table += norm_rules(f"{layer}.pre_cross_attn_layernorm", f"{flax}/cross_attention_norm")
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True, also=(head,)))
    return table


SIZES = {"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64}
MORE = {"intermediate_size": 24576, "hidden_act": "gelu", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5}
RATES = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "initializer_range": 0.02}
FLAGS = {"tie_word_embeddings": False, "use_parallel_residual": True, "attention_bias": True}
ROPE = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "rope_type": "default"}
TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "rope_parameters": ROPE}
FAMILY = Family(
    name="gpt_neox",
    defaults={"gpt_neox": {**SIZES, **MORE, **RATES, **FLAGS, **TOKENS}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "gpt_neox."), "decoder": ("gpt_neox.", "")},
    ignored=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    old_rope={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    torch_cross=False,
)
