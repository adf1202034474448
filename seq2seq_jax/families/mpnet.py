"""MPNet (transformers.MPNetModel), an encoder: positions from the ids, and T5's relative buckets, one table."""

from seq2seq_jax.config import RelativeBias
from seq2seq_jax.families.roberta import DEFAULTS, positions_from_ids
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import BERT, BERT_POOLER, bert_embedding_rules, read_fields

FIELDS = {ours: theirs for ours, theirs in BERT.items() if ours != "type_vocab_size"}


def from_hf(hf, role):
    # The class counts from 1, whatever the pad token is.
    positions = positions_from_ids({**hf, "pad_token_id": 1})
    bias = RelativeBias(hf["relative_attention_num_buckets"], 128)
    return {**read_fields(hf, FIELDS), **positions, "padding_idx": 1, "relative_bias": bias}


def rules(config):
    layer, flax = "encoder.layer.{layer}", "layers/{layer}"
    names = [f"{layer}.attention.attn.{n}" for n in ("q", "k", "v", "o")]
    return [
        *bert_embedding_rules(config),
        rule("encoder.relative_attention_bias.weight", "relative_bias/table/embedding"),
        *attention_rules(config, f"{flax}/self_attention", *names),
        *norm_rules(f"{layer}.attention.LayerNorm", f"{flax}/self_attention_norm"),
        *linear_rules(f"{layer}.intermediate.dense", f"{flax}/mlp/up"),
        *linear_rules(f"{layer}.output.dense", f"{flax}/mlp/down"),
        *norm_rules(f"{layer}.output.LayerNorm", f"{flax}/mlp_norm"),
    ]


MORE = {"vocab_size": 30527, "relative_attention_num_buckets": 32}
FAMILY = Family(
    name="mpnet",
    defaults={"mpnet": {k: v for k, v in {**DEFAULTS, **MORE}.items() if k != "type_vocab_size"}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "mpnet.")},
    ignored=(r"embeddings\.position_ids",),
    passthrough={"encoder": BERT_POOLER},
)
