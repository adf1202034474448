"""Texts in, lines of output out: what is done with each window of a file, and all that the result depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.inference.corpus import Decoded, decode_rows, encode_sources
from seq2seq_jax.inference.lines import one_line
from seq2seq_jax.inference.mbr import minimum_bayes_risk, named_utility
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.text.tokenizer import Tokenizer, Tokenizers


@dataclass(frozen=True)
class LineDecoder:
    """Decodes windows of texts; the outputs of a window depend on nothing but its texts, its number and the fields.

    Attributes:
      pretrained: decodes by its own generation_config.
      window: how many texts a window has, but the last.
      batch_size, batch_tokens: see `plan_batches`. compact: rows that are done leave the batch.
      source_prefix: put before each text. max_source_length: longer texts are cut to so many tokens.
      seed: of sampling.
      scores: write JSON objects with the text's number (from 1), an output and its score, not the output alone.
      mbr: a utility (`UTILITIES`) by which one of each text's outputs is chosen; None: all are written.
    """

    pretrained: Pretrained
    tokenizers: Tokenizers
    window: int
    batch_size: int = 16
    batch_tokens: int | None = None
    compact: bool = False
    source_prefix: str = ""
    max_source_length: int | None = None
    seed: int = 0
    scores: bool = False
    mbr: str | None = None

    def __post_init__(self):
        if self.mbr is not None:
            named_utility(self.mbr)
            if self.pretrained.generation_config.num_return_sequences < 2:
                raise ValueError(
                    f"mbr {self.mbr!r} chooses among several outputs of a text, and num_return_sequences is 1; set"
                    " num_return_sequences=16 and do_sample=true, say"
                )

    def __call__(
        self, number: int, texts: Sequence[str], count: Callable[[Sequence[Decoded]], None] = lambda decoded: None
    ) -> str:
        """The lines for window `number` (from 0), each with its end; `count` is called with what each batch gave."""
        ids = encode_sources(
            self.pretrained, [self.source_prefix + text for text in texts], self.tokenizers, self.max_source_length
        )
        # A whole corpus that is smaller than a batch needs no more rows.
        rows = min(self.batch_size, len(texts) if number == 0 else self.window)
        sampled = self.pretrained.generation_config.do_sample
        decoded = decode_rows(
            self.pretrained,
            ids,
            self.tokenizers.target,
            self.tokenizers.source.fill_id,
            batch_size=rows,
            batch_tokens=self.batch_tokens,
            compact=self.compact,
            scores=self.scores,
            rng=jax.random.fold_in(jax.random.key(self.seed), number) if sampled else None,
            count=count,
        )
        if self.mbr is not None:
            chosen = minimum_bayes_risk([each.texts for each in decoded], self.mbr)
            decoded = [_only(each, i) for each, i in zip(decoded, chosen)]
        return "".join(
            line + "\n"
            for i, each in enumerate(decoded, number * self.window + 1)
            for line in (_records(i, each) if self.scores else map(one_line, each.texts))
        )

    def settings(self) -> dict[str, Any]:
        """What the outputs depend on, as JSON values; weights and tokenizers by a hash of their content, which is the
        same on any mesh."""
        model, generation = self.pretrained.model, self.pretrained.generation_config
        sides = {side: getattr(model.config, side) for side in ("encoder", "decoder")}
        unpadded = {side: dataclasses.replace(c, padded_vocab_size=c.vocab_size) for side, c in sides.items()}
        config = dataclasses.replace(model.config, **unpadded)
        names = (
            "window",
            "batch_size",
            "batch_tokens",
            "compact",
            "source_prefix",
            "max_source_length",
            "scores",
            "mbr",
        )
        return {
            "model": {
                "config": _hash(repr((config, np.dtype(model.dtype).name, model.int8)).encode()),
                "weights": _hash(*_bytes(self.pretrained.params, sides)),
            },
            "tokenizer": {side: _hash(_content(t)) for side, t in self.tokenizers._asdict().items()},
            "generation": dataclasses.asdict(generation),
            "seed": self.seed if generation.do_sample else None,
            **{name: getattr(self, name) for name in names},
        }


def _only(decoded: Decoded, index: int) -> Decoded:
    scores = None if decoded.scores is None else [decoded.scores[index]]
    return decoded._replace(texts=[decoded.texts[index]], scores=scores)


def _records(number: int, decoded: Decoded) -> list[str]:
    pairs = zip(decoded.texts, decoded.scores, strict=True)
    return [json.dumps({"line": number, "text": text, "score": s}, ensure_ascii=False) for text, s in pairs]


def _hash(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(params: Any, sides: Mapping[str, TransformerConfig]):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        content, side = np.asarray(leaf), sides.get(path[0].key)
        if side is not None and leaf.shape[:1] == (side.padded_vocab_size,):
            content = content[: side.vocab_size]  # the rest is there for a mesh
        yield f"{jax.tree_util.keystr(path)} {content.shape} {content.dtype}".encode()
        yield np.ascontiguousarray(content).reshape(-1).view(np.uint8)


def _content(tokenizer: Tokenizer) -> bytes:
    rest = (tokenizer.truncation_side, tokenizer.clean_up_spaces, tokenizer.fill_id)
    return json.dumps([tokenizer.backend.to_str(), *rest]).encode()
