"""data2vec's text model (transformers.Data2VecTextModel, Data2VecTextForCausalLM): RoBERTa under another name."""

from seq2seq_jax.families import roberta

FAMILY = roberta.family("data2vec-text", {"data2vec-text": roberta.DEFAULTS}, "data2vec_text.")
