"""RoBERTa, XLM-RoBERTa, CamemBERT (transformers.RobertaModel, RobertaForCausalLM): positions counted from the ids."""

from seq2seq_jax.families.rules import Family
from seq2seq_jax.families.shared import (
    BERT,
    BERT_DEFAULTS,
    BERT_IGNORED,
    BERT_POOLER,
    bert_embedding_rules,
    bert_layer_rules,
    lm_head_rules,
    read_fields,
)

TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DEFAULTS = {**BERT_DEFAULTS, **TOKENS}


def positions_from_ids(hf):
    """Positions of tokens begin after the pad token's row of the table."""
    pad = hf["pad_token_id"]
    if pad is None:
        raise ValueError("pad_token_id is null; give the pad token's id, behind whose row positions begin")
    return {
        "position_pad_id": pad,
        "position_offset": pad + 1,
        "max_positions": hf["max_position_embeddings"] - pad - 1,
    }


def from_hf(hf, role):
    settings = {**read_fields(hf, BERT), **positions_from_ids(hf)}
    if role == "decoder":
        settings.update(causal=True, head=True, head_transform=True, head_activation="gelu", head_bias="trained")
        settings.update(tie_head=hf["tie_word_embeddings"])
    return settings


def head_rules(config):
    biases = ("lm_head.bias", "lm_head.decoder.bias")
    names = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight")
    return lm_head_rules(config, *names, biases if config.tie_head else biases[::-1]) if config.head else []


def tied_names(config):
    return ("lm_head.decoder.weight",) if config.head and config.tie_head else ()


def rules(config):
    return [*bert_embedding_rules(config, tied_names(config)), *bert_layer_rules(config), *head_rules(config)]


def family(name, defaults, prefix="roberta.", layers=rules, read=from_hf):
    """A family like RoBERTa, in which the base model's names begin with `prefix`."""
    return Family(
        name=name,
        defaults=defaults,
        from_hf=read,
        rules=layers,
        prefixes={"encoder": ("", prefix), "decoder": (prefix, "")},
        ignored=BERT_IGNORED,
        passthrough={"encoder": BERT_POOLER},
    )


FAMILY = family(
    "roberta",
    {
        "roberta": {**DEFAULTS, "vocab_size": 50265},
        "xlm-roberta": DEFAULTS,
        "camembert": DEFAULTS,
    },
)
