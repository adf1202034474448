"""The Flax class that transformers 4 had."""

import harness
import jax
import numpy as np
from transformers import FlaxEncoderDecoderModel

PAD = 0


def load(setting):
    return FlaxEncoderDecoderModel.from_pretrained(setting["directory"], from_pt=True)


def decode(model, request):
    ids = np.asarray(request["input_ids"])
    length = request["steps"] + 1
    options = dict(
        num_beams=request["beams"], max_length=length, do_sample=False,
        # It knows no way to have no end token: the least length keeps the one that it gets from being written.
        min_length=length, eos_token_id=1, decoder_start_token_id=1, pad_token_id=PAD,
    )  # fmt: skip

    # Called bare, it compiles its loop anew each time. Its `encode` hands positions to BERT as token types, of which
    # there are two (beyond them all is NaN, and nothing is written); zeros are right for both, and BERT counts itself.
    @jax.jit
    def compiled(ids, params):
        mask, zeros = jax.numpy.ones_like(ids), jax.numpy.zeros_like(ids)
        return model.generate(ids, attention_mask=mask, position_ids=zeros, params=params, **options).sequences

    def work():
        sequences = np.asarray(compiled(ids, model.params))
        return {"tokens": harness.count_tokens(sequences, PAD), "outputs": sequences.tolist()}

    return work


if __name__ == "__main__":
    harness.serve(load, {"decode": decode}, ("transformers", "jax", "flax", "numpy"))
