"""Decoding by the Flax class that transformers 4 had."""

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
        # It needs an end token; the minimum length keeps it from being written.
        min_length=length, eos_token_id=1, decoder_start_token_id=1, pad_token_id=PAD,
    )  # fmt: skip

    # Without jit it compiles its loop in each call. Its `encode` passes positions to BERT as token types, of which BERT
    # has two (others give NaN, and nothing is written). Zeros are right as types, and BERT makes positions by itself.
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
