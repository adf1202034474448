"""Writes a pair of two BERTs with random weights that torch's EncoderDecoderModel can load.

write_pair.py DIRECTORY DTYPE SIZE    where SIZE is a JSON object: layers, hidden, heads, intermediate, vocab, positions
"""

import json
import sys

import jax.numpy as jnp

import seq2seq_jax as s2s
from tools.benchmarks.peers.systems import Size


def main(directory, dtype, size):
    bert = Size(**json.loads(size)).bert
    pair = s2s.from_encoder_decoder_configs(bert, bert, decoder_start_token_id=1, pad_token_id=0)
    # The Flax class reads one file only. The files for a GPU are small, so that they are easy to copy.
    shards = "50MB" if dtype == "bfloat16" else "50GB"
    s2s.save_pretrained(directory, pair, dtype=jnp.dtype(dtype), max_shard_size=shards)


if __name__ == "__main__":
    main(*sys.argv[1:])
