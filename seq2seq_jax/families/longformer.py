"""Longformer (transformers.LongformerModel), an encoder: RoBERTa whose tokens see a window of neighbours.

The window is a mask on full attention: exact at any length, with memory that grows by the square of it. Global
attention (global_attention_mask, which torch's EncoderDecoderModel does not set either) is not built; its parameters
are kept.
"""

from dataclasses import replace

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families import roberta
from seq2seq_jax.families.shared import BERT_POOLER


def from_hf(hf, role):
    windows, layers = hf["attention_window"], hf["num_hidden_layers"]
    windows = [windows] * layers if isinstance(windows, int) else windows[:layers]
    return {**roberta.from_hf(hf, role), "layer_pattern": tuple(LayerSettings(window=w // 2) for w in windows)}


GLOBAL = r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)_global\.(weight|bias)"
FAMILY = replace(
    roberta.FAMILY,
    name="longformer",
    defaults={"longformer": {**roberta.DEFAULTS, "attention_window": 512}},
    from_hf=from_hf,
    prefixes={"encoder": ("", "longformer.")},
    passthrough={"encoder": (*BERT_POOLER, GLOBAL)},
)
