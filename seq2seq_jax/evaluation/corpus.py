"""Decoding a corpus: texts in, texts out, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from seq2seq_jax.data.text import Tokenizer, Tokenizers, pad
from seq2seq_jax.parallel.multihost import to_host
from seq2seq_jax.weights.pretrained import Pretrained

# Sources are padded to a multiple of this: few shapes, few compilations.
WIDTH_STEP = 32


def decode_texts(
    pretrained: Pretrained,
    texts: Sequence[str],
    tokenizers: Tokenizers,
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
    most = pretrained.config.encoder.max_positions
    ids = tokenizers.source.encode(list(texts), max_length=min(max_source_length or most, most))
    return decode_ids(
        pretrained,
        ids,
        tokenizers.target,
        tokenizers.source.fill_id,
        batch_size=batch_size,
        progress=progress,
        **settings,
    )


def decode_ids(
    pretrained: Pretrained,
    ids: Sequence[Sequence[int]],
    target_tokenizer: Tokenizer,
    source_pad_id: int,
    *,
    batch_size: int = 16,
    progress: bool = False,
    **settings: Any,
) -> list[list[str]]:
    """`decode_texts` of encoded sources, unpadded."""
    most = pretrained.config.encoder.max_positions
    # Rows of like length share a batch, so that short ones do not pay for long ones.
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    outputs: list[list[str]] = [[] for _ in ids]
    with tqdm(total=len(ids), desc="decode", unit="text", disable=not progress) as bar:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = [ids[i] for i in rows]
            width = min(most, -(-max(1, *(len(row) for row in batch)) // WIDTH_STEP) * WIDTH_STEP)
            # A last small batch is filled with its own first row: one shape, one compilation.
            filled = batch + [batch[0]] * (min(batch_size, len(ids)) - len(batch))
            input_ids, mask = pad(filled, source_pad_id, length=width)
            sequences = to_host(pretrained.generate(input_ids, mask, **settings).sequences)
            sequences = sequences.reshape(len(filled), -1, sequences.shape[-1])
            for i, hypotheses in zip(rows, sequences):
                outputs[i] = [target_tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in hypotheses]
            bar.update(len(rows))
    return outputs
