"""BERT (transformers.BertModel as encoder, BertLMHeadModel as decoder): post-LN, token types, head transform."""

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "norm_eps",
}


def from_hf(hf, role):
    settings = {ours: hf[theirs] for theirs, ours in FIELDS.items()}
    if role == "decoder":
        tie = hf["tie_word_embeddings"]
        settings.update(causal=True, head=True, head_transform=True, head_bias=True, tie_head=tie)
    return settings


def rules(config: TransformerConfig):
    layer, flax = "encoder.layer.{layer}", "layers/{layer}"
    tied = ("cls.predictions.decoder.weight",) if config.head and config.tie_head else ()
    table = [
        rule("embeddings.word_embeddings.weight", "embeddings/token/embedding", also=tied),
        rule("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
        rule("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding"),
        *norm_rules("embeddings.LayerNorm", "embeddings/norm"),
    ]
    blocks = {"attention": "self_attention"}
    if config.cross_attention_size is not None:
        blocks["crossattention"] = "cross_attention"
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.self.{n}" for n in ("query", "key", "value")]
        table += attention_rules(config, f"{flax}/{ours}", *names, f"{layer}.{theirs}.output.dense")
        table += norm_rules(f"{layer}.{theirs}.output.LayerNorm", f"{flax}/{ours}_norm")
    table += linear_rules(f"{layer}.intermediate.dense", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.output.dense", f"{flax}/mlp/down")
    table += norm_rules(f"{layer}.output.LayerNorm", f"{flax}/mlp_norm")
    if config.head:
        head = "cls.predictions"
        table += linear_rules(f"{head}.transform.dense", "head/transform", head=True)
        table += norm_rules(f"{head}.transform.LayerNorm", "head/norm", head=True)
        # torch adds decoder.bias, and ties it to bias where it ties the weight.
        names = (f"{head}.bias", f"{head}.decoder.bias")
        used, other = names if config.tie_head else names[::-1]
        table.append(rule(used, "head/bias", head=True, also=(other,)))
        if not config.tie_head:
            table.append(rule(f"{head}.decoder.weight", "head/kernel", head=True))
    return table


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    defaults={
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
    from_hf=from_hf,
    fields={"encoder": FIELDS, "decoder": {**FIELDS, "tie_word_embeddings": "tie_head"}},
    rules=rules,
    prefixes={"encoder": ("", "bert."), "decoder": ("bert.", "")},
    ignored=(r"embeddings\.position_ids", r"embeddings\.token_type_ids", r"cls\.seq_relationship\..*"),
    aside=(r"pooler\.dense\.(weight|bias)",),
    other_part={"encoder": (r"cls\.predictions\..*",), "decoder": (r"(bert\.)?pooler\..*",)},
)
