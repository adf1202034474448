"""T5, mT5, UMT5, Flan-T5 (transformers.T5ForConditionalGeneration and its halves): RMS norms, relative biases."""

import numpy as np

from seq2seq_jax.config import LayerSettings, RelativeBias
from seq2seq_jax.families.rules import Family, Seq2Seq, attention_rules, linear_rules, norm_rules, rule

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "dropout_rate",
}
NO_LIMIT = 2**20  # relative buckets hold for any length


def from_hf(hf, role):
    kind, _, act = hf["feed_forward_proj"].rpartition("-")
    if kind not in ("", "gated"):
        raise ValueError(f"feed_forward_proj is {hf['feed_forward_proj']!r}; give an activation, or gated-<activation>")
    act = "gelu_new" if (kind, act) == ("gated", "gelu") else act
    # The fields that newer files have beside it win, as in torch.
    act, gated = hf.get("dense_act_fn") or act, hf.get("is_gated_act", kind == "gated")
    layers = hf.get("num_decoder_layers") if role == "decoder" else None
    buckets = (hf["relative_attention_num_buckets"], hf["relative_attention_max_distance"])
    settings = {ours: hf[theirs] for ours, theirs in FIELDS.items()}
    settings.update(
        num_layers=hf["num_layers"] if layers is None else layers,
        activation=act,
        mlp_gated=gated,
        norm="rms",
        norm_position="pre",
        embedding_norm=False,
        padding_idx=None,
        float16="float32_residual",
        final_norm=True,
        positions="none",
        max_positions=NO_LIMIT,
        relative_bias=RelativeBias(*buckets, per_layer=hf["model_type"] == "umt5"),
        attention_bias=False,
        attention_out_bias=False,
        mlp_bias=False,
        attention_dropout=hf["dropout_rate"],
        activation_dropout=hf["dropout_rate"],
        layer_pattern=(LayerSettings(attention_scale=1.0),),
    )
    if role == "decoder":
        # As in transformers 5: T5 and UMT5 scale unless the config says no; mT5 never does.
        tie = hf["tie_word_embeddings"]
        scaled = hf["model_type"] != "mt5" and hf.get("scale_decoder_outputs", tie)
        settings.update(causal=True, head=True, tie_head=tie, head_scale=hf["d_model"] ** -0.5 if scaled else 1.0)
    return settings


def with_tensors(hf, checkpoint, prefix):
    """config.json with tie_word_embeddings as the file has it: false if its head differs from the token table."""
    head = f"{prefix}lm_head.weight"
    tables = [n for n in (f"{prefix}shared.weight", f"{prefix}decoder.embed_tokens.weight") if n in checkpoint]
    own = head in checkpoint and tables and not np.array_equal(checkpoint.read(head), checkpoint.read(tables[0]))
    out = dict(hf)
    if hf["model_type"] != "mt5":
        out.setdefault("scale_decoder_outputs", hf.get("tie_word_embeddings") is not False)
    return {**out, "tie_word_embeddings": not own}


def rules(config):
    layer, flax = "block.{layer}.layer", "layers/{layer}"
    head = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [rule("embed_tokens.weight", "embeddings/token/embedding", also=("shared.weight", *head))]
    bias = "SelfAttention.relative_attention_bias.weight"
    if config.relative_bias.per_layer:
        table.append(rule(f"{layer}.0.{bias}", f"{flax}/self_attention/bias/table/embedding"))
    else:
        table.append(rule(f"block.0.layer.0.{bias}", "relative_bias/table/embedding"))
    parts = [("SelfAttention", "self_attention")]
    if config.cross_attention_size is not None:
        parts.append(("EncDecAttention", "cross_attention"))
    for i, (theirs, ours) in enumerate(parts):
        table += attention_rules(config, f"{flax}/{ours}", *(f"{layer}.{i}.{theirs}.{n}" for n in "qkvo"))
        table += norm_rules(f"{layer}.{i}.layer_norm", f"{flax}/{ours}_norm", bias=False)
    # The MLP comes after the cross-attention, and is number 2 in a decoder without cross-attention too.
    mlp = f"{layer}.{2 if config.causal else 1}"
    names = {"wi_0": "gate", "wi_1": "up"} if config.mlp_gated else {"wi": "up"}
    for theirs, ours in {**names, "wo": "down"}.items():
        table += linear_rules(f"{mlp}.DenseReluDense.{theirs}", f"{flax}/mlp/{ours}", bias=False)
    table += norm_rules(f"{mlp}.layer_norm", f"{flax}/mlp_norm", bias=False)
    table += norm_rules("final_layer_norm", "final_norm", bias=False)
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


def defaults(vocab, ff, layers, heads, proj, **more):
    sizes = {"vocab_size": vocab, "d_model": 512, "d_kv": 64, "d_ff": ff, "num_layers": layers, "num_heads": heads}
    bias = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    rates = {"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "feed_forward_proj": proj}
    return {**sizes, **bias, **rates, "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True, **more}


CLASSES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
GATED = defaults(250112, 1024, 8, 6, "gated-gelu", decoder_start_token_id=0)
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "head_dim": "d_kv"}
FAMILY = Family(
    name="t5",
    defaults={"t5": defaults(32128, 2048, 6, 8, "relu"), "mt5": GATED, "umt5": GATED},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("encoder.", ""), "decoder": ("decoder.",)},
    ignored=(r"block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    aliases={**ALIASES, "num_hidden_layers": "num_layers"},
    renamed={
        **ALIASES,
        "intermediate_size": "d_ff",
        "encoder": {"num_hidden_layers": "num_layers"},
        "decoder": {"num_hidden_layers": "num_decoder_layers"},
    },
    with_tensors=with_tensors,
    causal_lm=False,
    encoder_classes={t: f"{c}EncoderModel" for t, c in CLASSES.items()},
    seq2seq=Seq2Seq(
        architectures={t: f"{c}ForConditionalGeneration" for t, c in CLASSES.items()},
        prefixes={"encoder": "encoder.", "decoder": "decoder."},
        shared=("shared.weight",),
    ),
)
