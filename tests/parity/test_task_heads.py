"""Checkpoints fine-tuned for another task, as encoder and as decoder, against torch's Auto classes on the directory."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import family_models as models  # noqa: E402
import torch_models  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from seq2seq_jax.families import registry  # noqa: E402
from seq2seq_jax.weights.initialization import MAY_BE_NEW  # noqa: E402
from seq2seq_jax.weights.pretrained import from_encoder_decoder_pretrained  # noqa: E402

pytestmark = pytest.mark.parity
# What shows a rule of its own: a pooler that belongs to the head, two heads, another prefix, halves, an untied head.
QUICK = {"BertForSequenceClassification", "BertForPreTraining", "GPT2DoubleHeadsModel", "DebertaV2ForMultipleChoice",
         "ElectraForPreTraining", "LlamaForQuestionAnswering", "Qwen3ForTokenClassification",
         "BartForSequenceClassification", "T5ForTokenClassification", "T5GemmaForSequenceClassification",
         "NomicBertForMaskedLM", "ModernBertForTokenClassification"}  # fmt: skip
# "decision" is a class of another configuration.
LEFT_OUT = {"JevForDecision"}


def classes():
    """Case's name and class, for every class with a head that transformers has for a supported model_type."""
    cases = {}
    for name, (kind, _) in models.CASES.items():
        cases.setdefault(kind, name)
    found = {("gpt2", "GPT2DoubleHeadsModel")}
    for mapping in vars(modeling_auto):
        if mapping.startswith("MODEL_FOR_") and mapping.endswith("_MAPPING_NAMES"):
            for kind, names in getattr(modeling_auto, mapping).items():
                names = (names,) if isinstance(names, str) else names
                found.update((cases[kind], n) for n in names if kind in cases and hasattr(transformers, n))
    return sorted((case, cls) for case, cls in found if cls not in LEFT_OUT)


CASES = [pytest.param(*c, id="-".join(c), marks=() if c[1] in QUICK else pytest.mark.slow) for c in classes()]
