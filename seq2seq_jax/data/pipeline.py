"""Texts to batches of ids."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from seq2seq_jax.data.sources import Pair
from seq2seq_jax.data.text import Tokenizer, pad
from seq2seq_jax.losses import IGNORED

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedPairs:
    """Ids of all examples.

    Attributes:
      sources, targets: int32 arrays, one an example, of any length; targets begin with the first token to predict and
        end with the end token.
      truncated_sources, truncated_targets: how many texts were cut.
    """

    sources: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...]
    truncated_sources: int
    truncated_targets: int

    def __len__(self) -> int:
        return len(self.sources)


def encode_pairs(
    pairs: Sequence[Pair],
    source_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    *,
    max_source_length: int,
    max_target_length: int,
) -> EncodedPairs:
    """Encodes pairs, cutting texts so that, special tokens included, they have at most so many tokens.

    Targets are the text's own tokens and the end token: the start token comes from shifting the labels, so the
    tokenizer's [CLS] or <s> must not stand in them too.

    Raises:
      ValueError: if the target tokenizer has no end token.
    """
    end = target_tokenizer.end_id
    if end is None:
        raise ValueError("the target tokenizer has no sep or eos token, so targets would have no end; name one in its"
                         " tokenizer_config.json (eos_token)")  # fmt: skip
    sources = source_tokenizer.encode([pair.source for pair in pairs])
    cut = source_tokenizer.encode([pair.source for pair in pairs], max_length=max_source_length)
    targets = target_tokenizer.encode([pair.target for pair in pairs], add_special_tokens=False)
    return EncodedPairs(
        tuple(np.array(ids, np.int32) for ids in cut),
        tuple(np.array([*ids[: max_target_length - 1], end], np.int32) for ids in targets),
        sum(len(ids) > max_source_length for ids in sources),
        sum(len(ids) > max_target_length - 1 for ids in targets),
    )


def make_batch(
    encoded: EncodedPairs, indices: np.ndarray, *, source_pad_id: int, source_length: int, target_length: int
) -> dict[str, np.ndarray]:
    """The arguments of `model.apply` for some examples.

    Returns:
      int32 arrays: input_ids and attention_mask [batch, source_length], labels [batch, target_length], -100 in tails.
    """
    input_ids, mask = pad([encoded.sources[i].tolist() for i in indices], source_pad_id, length=source_length)
    labels = np.full((len(indices), target_length), IGNORED, np.int32)
    for row, i in enumerate(indices):
        labels[row, : len(encoded.targets[i])] = encoded.targets[i]
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items, made in a thread that stays up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stop, end = threading.Event(), object()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
