"""Decoding a corpus: texts in, texts out, in batches of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from seq2seq_jax.data.text import Tokenizer, pad
from seq2seq_jax.weights.pretrained import Pretrained


def decode_texts(
    pretrained: Pretrained,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    *,
    batch_size: int = 16,
    max_source_length: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[list[str]]:
    """Outputs of each text: num_return_sequences strings, best first, in the order of `texts`.

    Args:
      max_source_length: in tokens; longer texts are cut. None: what the encoder's positions hold.
      settings: changes to the pair's generation_config (num_beams=4, ...), and rng for sampling.
    """
    config = pretrained.config
    longest = min(max_source_length or config.encoder.max_positions, config.encoder.max_positions)
    ids = tokenizer.encode(list(texts), max_length=longest)
    # Rows of like length share a batch, so that short ones do not pay for long ones.
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    outputs: list[list[str]] = [[] for _ in ids]
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with tqdm(total=len(ids), desc="decode", unit="text", disable=not progress) as bar:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = [ids[i] for i in rows]
            width = min(longest, -(-max(1, *(len(row) for row in batch)) // 32) * 32)
            # A last small batch is filled with its own first row: one shape, one compilation.
            filled = batch + [batch[0]] * (min(batch_size, len(ids)) - len(batch))
            input_ids, mask = pad(filled, fill, length=width)
            sequences = np.asarray(pretrained.generate(input_ids, mask, **settings).sequences)
            sequences = sequences.reshape(len(filled), -1, sequences.shape[-1])
            for i, hypotheses in zip(rows, sequences):
                outputs[i] = [target_tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in hypotheses]
            bar.update(len(rows))
    return outputs
