"""Decoding a corpus: texts in, texts out, in batches of like length and of few shapes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.decoding.scoring import transition_scores, written
from seq2seq_jax.parallel.multihost import to_host
from seq2seq_jax.parallel.progress import ProgressBar, progress_bar
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.text.tokenizer import Tokenizer, Tokenizers, pad

# The narrowest batch. Wider ones are 3/2, 2, 3, 4, 6, 8 ... times as wide: few shapes, few compilations.
NARROWEST = 32


class Decoded(NamedTuple):
    """Outputs of one text.

    Attributes:
      texts: num_return_sequences of them, best first.
      scores: of each, its log-probability over tokens ** length_penalty, as beam search has it; None: not asked for.
      tokens: how many tokens all of them have, end tokens included.
    """

    texts: list[str]
    scores: list[float] | None
    tokens: int


class Batch(NamedTuple):
    """Which texts are decoded together, in an array [rows, width]; rows beyond the texts are filled up."""

    texts: list[int]
    rows: int
    width: int


class Meter:
    """A progress bar of texts, with the target tokens written per second."""

    def __init__(self, bar: ProgressBar):
        self._bar, self._tokens, self._begin = bar, 0, time.perf_counter()

    def __call__(self, decoded: Sequence[Decoded]) -> None:
        """Counts what a batch gave."""
        self._tokens += sum(each.tokens for each in decoded)
        rate = self._tokens / max(time.perf_counter() - self._begin, 1e-9)
        self._bar.set_postfix(tokens_s=f"{rate:.0f}", refresh=False)
        self._bar.update(len(decoded))

    def passed(self, texts: int) -> None:
        """Counts texts that were there already, which took no time."""
        self._bar.n += texts
        self._bar.initial = self._bar.n


def padded_width(length: int, config: EncoderDecoderConfig) -> int:
    """The width of a batch whose longest text has `length` tokens, within what the encoder takes."""
    encoder = config.encoder
    most = encoder.max_positions
    if encoder.length_limit is not None and length <= encoder.length_limit[0]:
        most = min(most, encoder.length_limit[0])
    width = NARROWEST
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, most)


def plan_batches(
    lengths: Sequence[int], config: EncoderDecoderConfig, batch_size: int, batch_tokens: int | None = None
) -> list[Batch]:
    """Texts of these lengths (in tokens) in batches, longest first, so that short ones do not pay for long ones.

    A batch has batch_size rows, or the greatest power of two with which rows * width is at most batch_tokens; a text
    wider than that is a batch alone. So rows follow from the width, and each width is compiled once.

    Raises:
      ValueError: if batch_size or batch_tokens is below 1.
    """
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give a whole number from 1 up")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    out: list[Batch] = []
    begin = 0
    while begin < len(order):
        width, rows = padded_width(lengths[order[begin]], config), batch_size
        if batch_tokens is not None and rows * width > batch_tokens:
            rows = 1 << (max(1, batch_tokens // width).bit_length() - 1)
        out.append(Batch(order[begin : begin + rows], rows, width))
        begin += rows
    return out


def decode_texts(
    pretrained: Pretrained,
    texts: Sequence[str],
    tokenizers: Tokenizers,
    *,
    batch_size: int = 16,
    batch_tokens: int | None = None,
    compact: bool = False,
    max_source_length: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[list[str]]:
    """Outputs of each text: num_return_sequences strings, best first, in the order of `texts`.

    Args:
      batch_size, batch_tokens: rows of a batch, and at most how many tokens (rows * width); None: no limit.
      compact: rows that are done leave the batch; for many batches, since more shapes are compiled.
      max_source_length: in tokens; longer texts are cut. None: what the encoder's positions hold.
      settings: changes to the pair's generation_config (num_beams=4, ...), and rng for sampling.
    """
    return decode_ids(
        pretrained,
        encode_sources(pretrained, texts, tokenizers, max_source_length),
        tokenizers.target,
        tokenizers.source.fill_id,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        compact=compact,
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
    batch_tokens: int | None = None,
    compact: bool = False,
    progress: bool = False,
    **settings: Any,
) -> list[list[str]]:
    """`decode_texts` of encoded sources, unpadded."""
    with progress_bar(total=len(ids), desc="decode", unit="text", disable=not progress) as bar:
        decoded = decode_rows(
            pretrained,
            ids,
            target_tokenizer,
            source_pad_id,
            batch_size=min(batch_size, max(1, len(ids))),
            batch_tokens=batch_tokens,
            compact=compact,
            count=Meter(bar),
            **settings,
        )
    return [each.texts for each in decoded]


def encode_sources(
    pretrained: Pretrained, texts: Sequence[str], tokenizers: Tokenizers, max_source_length: int | None = None
) -> list[list[int]]:
    """Ids of texts, cut to max_source_length and to what the encoder's positions hold."""
    most = pretrained.config.encoder.max_positions
    return tokenizers.source.encode_batch(list(texts), max_length=min(max_source_length or most, most))


def decode_rows(
    pretrained: Pretrained,
    ids: Sequence[Sequence[int]],
    target_tokenizer: Tokenizer,
    source_pad_id: int,
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    compact: bool = False,
    scores: bool = False,
    count: Callable[[Sequence[Decoded]], None] = lambda decoded: None,
    rng: jax.Array | None = None,
    **settings: Any,
) -> list[Decoded]:
    """What each row of ids becomes, in their order.

    Args:
      ids: of sources, unpadded, special tokens included.
      batch_size, batch_tokens: see `plan_batches`. compact: see `decode_texts`.
      scores: whether to score the outputs, by one more pass where the search itself does not.
      count: called after each batch with what it gave.
      rng: a key; each batch draws from its own. settings: changes to the pair's generation_config.
    """
    generation = pretrained.generation_config.replace(**settings)
    out: list[Decoded | None] = [None] * len(ids)
    plan = plan_batches([len(row) for row in ids], pretrained.config, batch_size, batch_tokens)
    shapes = dict.fromkeys((batch.rows, batch.width) for batch in plan)
    compile_shape = lambda shape: pretrained.compile_generate(shape, generation, rng=rng, tokenizer=target_tokenizer)
    with compiled_ahead(compile_shape, shapes) as wait:
        for number, batch in enumerate(plan):
            rows = [ids[i] for i in batch.texts]
            rows += rows[:1] * (batch.rows - len(rows))
            input_ids, mask = pad(rows, source_pad_id, length=batch.width)
            key = None if rng is None else jax.random.fold_in(rng, number)
            options = {"rng": key, "tokenizer": target_tokenizer, "compact": compact}
            wait((batch.rows, batch.width))
            arrays = _decode_batch(pretrained, input_ids, mask, generation, options, scores)
            decoded = [_decoded(target_tokenizer, *(a[i] for a in arrays)) for i in range(len(batch.texts))]
            for i, each in zip(batch.texts, decoded):
                out[i] = each
            count(decoded)
    return out


@contextmanager
def compiled_ahead(
    compile_shape: Callable[[tuple[int, int]], None], shapes: Iterable[tuple[int, int]]
) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Compiles for shapes [rows, width] on other threads, in their order, while batches are decoded.

    Gives a function that waits until a shape is compiled, and raises what its compilation raised.
    """
    mesh = jax.sharding.get_mesh()

    def within(shape: tuple[int, int]) -> None:
        with nullcontext() if mesh.empty else jax.set_mesh(mesh):  # a thread begins without one
            compile_shape(shape)

    # Processes that run together have to compile in one order.
    workers = 1 if jax.process_count() > 1 else max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(min(workers, 8), thread_name_prefix="compile") as pool:
        pending: dict[tuple[int, int], Future] = {shape: pool.submit(within, shape) for shape in shapes}
        try:
            yield lambda shape: pending[shape].result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_batch(
    pretrained: Pretrained,
    input_ids: np.ndarray,
    mask: np.ndarray,
    generation: GenerationConfig,
    options: dict[str, Any],
    scores: bool,
) -> tuple[np.ndarray, ...]:
    """Sequences [rows, n, length], token counts [rows, n] and, if asked for, scores [rows, n]."""
    generated = pretrained.generate(input_ids, mask, generation, **options)
    sequences = to_host(generated.sequences)
    ends = {"eos_token_id": generation.eos_token_id, "pad_token_id": generation.pad_token_id}
    counts = written(pretrained.model, sequences, **ends).sum(axis=1)
    arrays = [sequences, counts]
    if scores and generated.sequences_scores is not None:
        arrays.append(to_host(generated.sequences_scores))
    elif scores:
        model, params = pretrained.model, pretrained.params
        transitions = to_host(transition_scores(model, params, input_ids, mask, sequences, **ends))
        arrays.append(transitions.sum(axis=1) / np.maximum(counts, 1) ** generation.length_penalty)
    return tuple(array.reshape(len(input_ids), -1, *array.shape[1:]) for array in arrays)


def _decoded(
    tokenizer: Tokenizer, sequences: np.ndarray, counts: np.ndarray, scores: np.ndarray | None = None
) -> Decoded:
    texts = [tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in sequences]
    return Decoded(texts, None if scores is None else scores.tolist(), int(counts.sum()))
