"""RemBERT (transformers.RemBertModel, RemBertForCausalLM): input and output embeddings of different sizes."""

from seq2seq_jax.families.rules import Family, linear_rules
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


def from_hf(hf, role):
    settings = read_fields(hf, BERT, embedding_size=hf["input_embedding_size"])
    if role == "decoder":
        settings.update(causal=True, head=True, head_transform=True, head_bias="trained", tie_head=False)
        settings.update(head_size=hf["output_embedding_size"])
    return settings


def rules(config):
    table = bert_embedding_rules(config)
    if config.embedding_size != config.hidden_size:
        table += linear_rules("encoder.embedding_hidden_mapping_in", "embeddings/projection")
    table += bert_layer_rules(config)
    head = "cls.predictions"
    names = (f"{head}.dense", f"{head}.LayerNorm", f"{head}.decoder.weight", (f"{head}.decoder.bias",))
    return table + lm_head_rules(config, *names) if config.head else table


SIZES = {"vocab_size": 250300, "hidden_size": 1152, "num_hidden_layers": 32, "num_attention_heads": 18}
MORE = {"input_embedding_size": 256, "output_embedding_size": 1664, "intermediate_size": 4608}
RATES = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "bos_token_id": 312, "eos_token_id": 313}
FAMILY = Family(
    name="rembert",
    defaults={"rembert": {**BERT_DEFAULTS, **SIZES, **MORE, **RATES, "tie_word_embeddings": False}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "rembert."), "decoder": ("rembert.", "")},
    ignored=BERT_IGNORED,
    passthrough={"encoder": BERT_POOLER},
)
