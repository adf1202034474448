"""BertGeneration (transformers.BertGenerationEncoder, BertGenerationDecoder): BERT without token types, plain head."""

from seq2seq_jax.families.rules import Family
from seq2seq_jax.families.shared import (
    BERT,
    BERT_DEFAULTS,
    BERT_IGNORED,
    bert_embedding_rules,
    bert_layer_rules,
    lm_head_rules,
    read_fields,
)

FIELDS = {ours: theirs for ours, theirs in BERT.items() if ours != "type_vocab_size"}
SIZES = {"vocab_size": 50358, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
DEFAULTS = {**BERT_DEFAULTS, **SIZES, "intermediate_size": 4096, "bos_token_id": 2, "eos_token_id": 1}


def from_hf(hf, role):
    settings = read_fields(hf, FIELDS)
    if role == "decoder":
        settings.update(causal=True, head=True, head_bias="trained", tie_head=hf["tie_word_embeddings"])
    return settings


def rules(config):
    tied = ("lm_head.decoder.weight",) if config.head and config.tie_head else ()
    table = [*bert_embedding_rules(config, tied), *bert_layer_rules(config)]
    biases = ("lm_head.bias", "lm_head.decoder.bias")
    names = ("", "", "lm_head.decoder.weight", biases if config.tie_head else biases[::-1])
    return table + lm_head_rules(config, *names) if config.head else table


FAMILY = Family(
    name="bert-generation",
    defaults={"bert-generation": {k: v for k, v in DEFAULTS.items() if k != "type_vocab_size"}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "bert."), "decoder": ("bert.", "")},
    ignored=BERT_IGNORED,
)
