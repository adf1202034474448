"""GPT-Neo (transformers.GPTNeoModel, GPTNeoForCausalLM): GPT-2 with local layers and unscaled attention scores."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import read_fields

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "max_positions": "max_position_embeddings",
    "activation": "activation_function",
    "dropout": "resid_dropout",
    "embedding_dropout": "embed_dropout",
    "attention_dropout": "attention_dropout",
    "norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}


def from_hf(hf, role):
    kinds = [kind for names, count in hf["attention_types"] for _ in range(count) for kind in names]
    if len(kinds) < hf["num_layers"]:
        raise ValueError(f"attention_types describes {len(kinds)} layers, and num_layers is {hf['num_layers']}")
    windows = {"global": None, "local": hf["window_size"] - 1}
    layers = [LayerSettings(attention_scale=1.0, window=windows[kind]) for kind in kinds[: hf["num_layers"]]]
    return read_fields(
        hf,
        FIELDS,
        intermediate_size=hf["intermediate_size"] or 4 * hf["hidden_size"],
        padding_idx=None,
        norm_position="pre",
        embedding_norm=False,
        final_norm=True,
        causal=True,
        attention_bias=False,
        head=role == "decoder",
        tie_head=hf["tie_word_embeddings"],
        layer_pattern=tuple(layers),
    )


def rules(config):
    layer, flax = "h.{layer}", "layers/{layer}"
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [rule("wte.weight", "embeddings/token/embedding", also=tied)]
    table.append(rule("wpe.weight", "embeddings/position/embedding"))
    norms = {"self_attention": "ln_1", "mlp": "ln_2"}
    blocks = {"attn.attention": "self_attention"}
    if config.cross_attention_size is not None:
        blocks["cross_attn"], norms["cross_attention"] = "cross_attention", "ln_cross_attn"
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.{n}_proj" for n in ("q", "k", "v", "out")]
        table += attention_rules(config, f"{flax}/{ours}", *names)
    for part, theirs in norms.items():
        table += norm_rules(f"{layer}.{theirs}", f"{flax}/{part}_norm")
    table += linear_rules(f"{layer}.mlp.c_fc", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.mlp.c_proj", f"{flax}/mlp/down")
    table += norm_rules("ln_f", "final_norm")
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


SIZES = {"vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24, "num_heads": 16}
LAYERS = {"attention_types": [[["global", "local"], 12]], "window_size": 256, "intermediate_size": None}
MORE = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
RATES = {"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}
TOKENS = {"bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": True}
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
FAMILY = Family(
    name="gpt_neo",
    defaults={"gpt_neo": {**SIZES, **LAYERS, **MORE, **RATES, **TOKENS}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "transformer."), "decoder": ("transformer.", "")},
    ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
    aliases=ALIASES,
    renamed=ALIASES,
    torch_cross=False,
)
