"""Packs several examples into one row, so that rows are full on both sides."""

from __future__ import annotations

import numpy as np

# Examples that are packed together. Time grows with examples times window, and larger windows hardly fill rows better.
WINDOW = 2048


def pack(
    source_lengths: np.ndarray, target_lengths: np.ndarray, source_room: int, target_room: int, order: np.ndarray
) -> np.ndarray:
    """Rows of examples whose sources together have at most `source_room` tokens and whose targets `target_room`.

    A row starts with the largest example that is left. Then, as long as one fits, it takes the example that minimises
    the room left on the side with more of it, so that neither side is full long before the other (the greedy by the
    largest norm of Panigrahy et al. 2011, Heuristics for Vector Bin Packing).

    Args:
      source_lengths, target_lengths: int [examples], none longer than its room.
      order: int [examples], examples in random order; each `WINDOW` of them is packed by itself.

    Returns:
      int [rows, most examples in a row]; -1 behind a row's last example.
    """
    # Both sides scaled to the same room, in integers, so that they can be compared: [2, examples].
    sides = np.stack([source_lengths, target_lengths]).astype(np.int64) * [[target_room], [source_room]]
    room = source_room * target_room
    rows = []
    for start in range(0, len(order), WINDOW):
        rows += _pack_window(sides, room, order[start : start + WINDOW])
    out = np.full((len(rows), max(map(len, rows), default=0)), -1)
    for row, examples in enumerate(rows):
        out[row, : len(examples)] = examples
    return out


def _pack_window(sides: np.ndarray, room: int, examples: np.ndarray) -> list[np.ndarray]:
    """`pack` of a few examples; sides [2, all examples] of a row that has `room` on each."""
    examples = examples[np.argsort(-sides[:, examples].max(0), kind="stable")]
    source, target = sides[:, examples]
    gone, rows = room + 1, []  # a packed example gets this size, which fits nowhere
    for first in range(len(examples)):
        if source[first] == gone:
            continue
        row, place = [], first
        source_left = target_left = room
        while True:
            row.append(place)
            source_left, target_left = source_left - source[place], target_left - target[place]
            source[place] = gone
            after_source, after_target = source_left - source[first:], target_left - target[first:]
            after = np.maximum(after_source, after_target)
            after[np.minimum(after_source, after_target) < 0] = gone
            place = first + int(np.argmin(after))
            if after[place - first] == gone:
                break
        rows.append(examples[row])
    return rows


class Exchange:
    """Exchanges examples of equal lengths: rows stay as full, and hold other examples in each epoch."""

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray):
        self._lengths = source_lengths.astype(np.int64) * (target_lengths.max() + 1) + target_lengths
        self._places = np.argsort(self._lengths, kind="stable")

    def __call__(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """`rows` of `pack`, each example replaced by one of the same lengths."""
        order = generator.permutation(len(self._lengths))
        examples = np.full(len(order) + 1, -1)  # -1 last, so that index -1 stays -1
        examples[self._places] = order[np.argsort(self._lengths[order], kind="stable")]
        return examples[rows]
