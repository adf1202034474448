"""ERNIE (transformers.ErnieModel, ErnieForCausalLM): BERT, plus the embedding of task 0 if it has tasks."""

from dataclasses import replace

from seq2seq_jax.families import bert
from seq2seq_jax.families.shared import BERT_DEFAULTS


def from_hf(hf, role):
    return {**bert.from_hf(hf, role), "task_vocab_size": hf["task_type_vocab_size"] if hf["use_task_id"] else 0}


FAMILY = replace(
    bert.FAMILY,
    name="ernie",
    defaults={"ernie": {**BERT_DEFAULTS, "task_type_vocab_size": 3, "use_task_id": False}},
    from_hf=from_hf,
    prefixes={"encoder": ("", "ernie."), "decoder": ("ernie.", "")},
)
