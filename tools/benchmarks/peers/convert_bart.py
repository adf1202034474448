"""Writes a BART with random weights in CTranslate2's format.

convert_bart.py DIRECTORY SIZE    where SIZE is a JSON object: layers, hidden, heads, intermediate, vocab, positions
"""

import json
import sys
import tempfile

from ctranslate2.converters import TransformersConverter
from transformers import BartConfig, BartForConditionalGeneration


class Names:
    """Stands for a tokenizer: the name of token i is t<i>."""

    bos_token, eos_token, unk_token = "t1", "t2", "t3"

    def __init__(self, vocab):
        self.vocab = vocab

    def get_vocab(self):
        return {f"t{i}": i for i in range(self.vocab)}

    def convert_ids_to_tokens(self, number):
        return f"t{number}"


class Converter(TransformersConverter):
    def __init__(self, directory, vocab):
        super().__init__(directory)
        self._vocab = vocab

    def load_tokenizer(self, *_, **__):
        return Names(self._vocab)


def main(directory, size):
    size = json.loads(size)
    sides = {
        f"{side}_{name}": size[value]
        for side in ("encoder", "decoder")
        for name, value in (("layers", "layers"), ("attention_heads", "heads"), ("ffn_dim", "intermediate"))
    }
    config = BartConfig(
        vocab_size=size["vocab"], d_model=size["hidden"], max_position_embeddings=size["positions"], **sides,
        pad_token_id=0, bos_token_id=1, decoder_start_token_id=1, eos_token_id=2, forced_eos_token_id=None,
        # The converter reads these fields, which BartConfig no longer has.
        normalize_before=False, add_final_layer_norm=False, normalize_embedding=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        BartForConditionalGeneration(config).save_pretrained(temporary)
        Converter(temporary, size["vocab"]).convert(directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
