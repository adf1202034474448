"""Texts to ids, once for a whole data set; what was cut or dropped is counted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from seq2seq_jax.config import DataConfig
from seq2seq_jax.text import long_texts
from seq2seq_jax.text import tokenizer as tokenizer_module
from seq2seq_jax.text.tokenizer import Tokenizer, as_tokenizer


@dataclass(frozen=True)
class Counts:
    """What became of the examples; texts that were cut are kept."""

    kept: int
    cut_sources: int
    cut_targets: int
    dropped_short: int
    dropped_long: int

    def __str__(self) -> str:
        dropped = {"too short or empty": self.dropped_short, "too long": self.dropped_long}
        parts = [f"{self.cut_sources} sources and {self.cut_targets} targets cut"]
        parts += [f"{count} examples dropped as {why}" for why, count in dropped.items() if count]
        return f"{self.kept} examples ({'; '.join(parts)})"


@dataclass(frozen=True)
class EncodedPairs:
    """Ids of all examples that are kept.

    Attributes:
      pairs: the texts.
      rows: columns input_ids and labels, of any length; labels begin with the first token to predict and end with the
        end token.
      kept: which rows of the texts these are, int [examples].
      source_lengths, target_lengths: int [examples].
      fingerprint: a hash of all ids.
    """

    pairs: datasets.Dataset
    rows: datasets.Dataset
    kept: np.ndarray
    source_lengths: np.ndarray
    target_lengths: np.ndarray
    counts: Counts
    fingerprint: str

    def __len__(self) -> int:
        return len(self.kept)

    def select(self, examples: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
        """input_ids and labels of some examples."""
        found = self.rows[self.kept[examples].tolist()]
        return found["input_ids"], found["labels"]

    def texts(self, examples: np.ndarray) -> tuple[list[str], list[str]]:
        """Sources and targets of some examples, as they were read."""
        found = self.pairs[self.kept[examples].tolist()]
        return found["source"], found["target"]


def encode_pairs(
    pairs: datasets.Dataset, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer, settings: DataConfig, name: str
) -> EncodedPairs:
    """Encodes text pairs (columns "source" and "target") as `settings` say. The ids are cached on disk by `datasets`.

    Targets are the text's own tokens and the end token: the start token comes from shifting the labels, so the
    tokenizer's [CLS] or <s> must not stand in them too.

    Args:
      source_tokenizer, target_tokenizer: or fast tokenizers of transformers.
      name: of the data, for messages.

    Raises:
      ValueError: if the target tokenizer has no end token, or no example is left.
    """
    source_tokenizer = as_tokenizer(source_tokenizer, "source_tokenizer")
    target_tokenizer = as_tokenizer(target_tokenizer, "target_tokenizer")
    end = target_tokenizer.end_id
    if end is None:
        raise ValueError("the target tokenizer has no sep or eos token, so targets would have no end; name one in its"
                         " tokenizer_config.json (eos_token)")  # fmt: skip
    longest_source, longest_target = settings.max_source_length, settings.max_target_length

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        # Tokens are counted as far as they matter below.
        sources, source_tokens = source_tokenizer.encode_and_count(
            [settings.source_prefix + s for s in batch["source"]],
            max_length=longest_source,
            count_to=settings.min_source_length,
        )
        targets, target_tokens = target_tokenizer.encode_and_count(
            [settings.target_prefix + t for t in batch["target"]],
            max_length=longest_target - 1,
            count_to=settings.min_target_length,
            add_special_tokens=False,
            truncation_side="right",
        )
        return {
            "input_ids": sources,
            "labels": [[*ids, end] for ids in targets],
            "source_tokens": source_tokens,
            "target_tokens": target_tokens,
        }

    rows = pairs.map(
        encode,
        batched=True,
        remove_columns=pairs.column_names,
        features=datasets.Features(
            {
                "input_ids": datasets.List(datasets.Value("int32")),
                "labels": datasets.List(datasets.Value("int32")),
                "source_tokens": datasets.Value("int32"),
                "target_tokens": datasets.Value("int32"),
            }
        ),
        new_fingerprint=_key(pairs, source_tokenizer, target_tokenizer, settings),
        desc=f"encode {name}",
    )
    table = rows.with_format("arrow")[:]
    source_tokens, target_tokens = (table.column(c).to_numpy() for c in ("source_tokens", "target_tokens"))
    special = len(source_tokenizer.encode_batch([""])[0])
    long_source, long_target = source_tokens + special > longest_source, target_tokens + 1 > longest_target
    short = (source_tokens < settings.min_source_length) | (target_tokens < settings.min_target_length)
    long = (long_source | long_target) & ~short & (settings.long_examples == "drop")
    kept = np.flatnonzero(~short & ~long)
    if not len(kept):
        raise ValueError(_nothing_left(name, settings, source_tokens, target_tokens, long))
    counts = Counts(
        len(kept), int(long_source[kept].sum()), int(long_target[kept].sum()), int(short.sum()), int(long.sum())
    )
    return EncodedPairs(
        pairs,
        rows.select_columns(["input_ids", "labels"]),
        kept,
        np.minimum(source_tokens + special, longest_source)[kept],
        np.minimum(target_tokens + 1, longest_target)[kept],
        counts,
        _fingerprint(table, kept),
    )


def _nothing_left(name: str, settings: DataConfig, source: np.ndarray, target: np.ndarray, long: np.ndarray) -> str:
    for field, tokens in ((settings.source_field, source), (settings.target_field, target)):
        if not tokens.any():
            return f"{name}: all {len(tokens)} texts under {field!r} are empty; check the columns, or mend the data"
    return (
        f"{name}: none of {len(source)} examples is left: {int(long.sum())} are too long and the others too short;"
        " change"
        " data.max_..._length, data.min_..._length or data.long_examples"
    )


def _key(pairs: datasets.Dataset, source: Tokenizer, target: Tokenizer, settings: DataConfig) -> str:
    """Under what the ids are cached: all that they depend on, this code too."""
    sides = ("source", "target")
    wanted = [f.format(side) for f in ("{}_prefix", "max_{}_length", "min_{}_length") for side in sides]
    parts = [pairs._fingerprint, *(f"{name}={getattr(settings, name)!r}" for name in wanted)]
    for tokenizer in (source, target):
        parts += [tokenizer.backend.to_str(), tokenizer.truncation_side, json.dumps(tokenizer.end_id)]
    parts += [
        Path(module).read_text(encoding="utf-8")
        for module in (__file__, tokenizer_module.__file__, long_texts.__file__)
    ]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _fingerprint(table, kept: np.ndarray) -> str:
    digest = hashlib.blake2b(kept.tobytes(), digest_size=16)
    for name in ("input_ids", "labels"):
        for chunk in table.column(name).chunks:
            digest.update(np.ascontiguousarray(chunk.value_lengths().to_numpy()))
            digest.update(np.ascontiguousarray(chunk.flatten().to_numpy()))
    return digest.hexdigest()
