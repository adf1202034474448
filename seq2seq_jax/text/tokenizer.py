"""The tokenizers of pretrained checkpoints: texts to token ids and back."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from seq2seq_jax.text import tokenizer_files
from seq2seq_jax.text.long_texts import is_long, tokenize_long
from seq2seq_jax.weights.files import local_directory, read_json
from seq2seq_jax.weights.workdir import model_directory

# A pair with two tokenizers has the source's in its directory and the target's in this folder of it.
TARGET_FOLDER = "target_tokenizer"

_SIDES = ("source", "target")
_NO_LIMIT = 10**20  # transformers writes 10**30 as model_max_length where a tokenizer has none


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and its special ids; gives the ids of torch's `AutoTokenizer` (transformers 5) on the same files.

    Attributes:
      backend: the `tokenizers.Tokenizer`, with neither truncation nor padding set.
      pad_token_id ... mask_token_id: the id of each special token; None where the tokenizer has none.
      max_length: the most tokens that the model takes; None: the files name no limit.
      truncation_side: the side, "left" or "right", that loses tokens. padding_side: the side that is padded.
      clean_up_spaces: whether `decode` removes the spaces in front of punctuation.
      files: name and content of the files that `save` writes beside `tokenizer.json`: JSON objects, or bytes.
    """

    backend: tokenizers.Tokenizer = field(repr=False)  # its own repr lists the vocabulary
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    unk_token_id: int | None = None
    mask_token_id: int | None = None
    max_length: int | None = None
    truncation_side: str = "right"
    padding_side: str = "right"
    clean_up_spaces: bool = False
    files: dict[str, dict[str, Any] | bytes] = field(default_factory=dict, repr=False)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def start_id(self) -> int | None:
        """The id that begins a text: of the cls token, or else of the bos token."""
        return self.bos_token_id if self.cls_token_id is None else self.cls_token_id

    @property
    def end_id(self) -> int | None:
        """The id that ends a text: of the sep token, or else of the eos token."""
        return self.eos_token_id if self.sep_token_id is None else self.sep_token_id

    @property
    def fill_id(self) -> int:
        """The id that short rows are padded with: of the pad token, or else 0, which the mask hides."""
        return 0 if self.pad_token_id is None else self.pad_token_id

    def __call__(
        self, texts: str | Iterable[str], *, max_length: int | None = None, add_special_tokens: bool = True
    ) -> dict[str, np.ndarray]:
        """Padded ids of texts, as `generate` and the model take them: `pair.generate(**tokenizer(texts))`.

        Args:
          texts: one text or several. max_length, add_special_tokens: see `encode_batch`.

        Returns:
          "input_ids" and "attention_mask", int32 [batch, longest], padded on `padding_side`; the mask is 1 on tokens.

        Raises:
          ValueError: as `encode_batch`.
        """
        rows = self.encode_batch(texts, max_length=max_length, add_special_tokens=add_special_tokens)
        input_ids, attention_mask = pad(rows, self.fill_id, side=self.padding_side)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def encode_batch(
        self, texts: str | Iterable[str], *, max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids of each text (of one text: a list of one), unpadded.

        Special tokens written out in a text become their ids, as in torch. `max_length` cuts a text so that it has at
        most so many ids, special tokens included (torch: truncation=True, max_length=...); None cuts nothing, so pass
        `tokenizer.max_length` for the model's own limit.

        Raises:
          ValueError: max_length leaves no room for the special tokens, or a text holds half a character.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if max_length is None:
            return [encoding.ids for encoding in self._tokenize(texts, add_special_tokens=add_special_tokens)]
        return self.encode_and_count(texts, max_length=max_length, add_special_tokens=add_special_tokens)[0]

    def encode_and_count(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        count_to: int = 0,
        add_special_tokens: bool = True,
        truncation_side: str | None = None,
    ) -> tuple[list[list[int]], list[int]]:
        """`encode_batch` with a max_length, and how many tokens each whole text has, special ones aside.

        Of a very long text only the beginning (or the end) is tokenized, so that its length costs neither time nor
        memory: see `text.long_texts`. Its count is then too low, but above both `count_to` and `max_length`.

        Args:
          truncation_side: the side that loses tokens, if it is not the tokenizer's own.

        Raises:
          ValueError: max_length leaves no room for the special tokens.
        """
        side = truncation_side or self.truncation_side
        special = self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        if max_length < max(special, 1):
            raise ValueError(
                f"max_length {max_length}: too small for {special} special tokens; "
                f"make it at least {special + 1} or pass add_special_tokens=False"
            )
        wanted = max(max_length, count_to)
        tokenize = functools.partial(self._tokenize, add_special_tokens=False)
        encodings = tokenize(["" if is_long(text, wanted) else text for text in texts])
        for i, text in enumerate(texts):
            if is_long(text, wanted):
                encodings[i] = tokenize_long(tokenize, text, wanted, side)
        rows, counts = [], [len(encoding) for encoding in encodings]
        # By hand and not with enable_truncation, which would change a backend that other threads are using.
        for encoding in encodings:
            encoding.truncate(max_length - special, direction=side)
            rows.append(self.backend.post_process(encoding, add_special_tokens=True).ids if special else encoding.ids)
        return rows, counts

    def _tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        try:
            return self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError:  # what it says of half a surrogate pair
            for number, text in enumerate(texts):
                if any("\ud800" <= character <= "\udfff" for character in text):
                    raise ValueError(
                        f"text {number} (from 0), {text[:40]!a}, holds half a character (a surrogate); mend the text,"
                        " or decode it with errors='replace'"
                    ) from None
            raise

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of ids [length], as torch's `decode` with the same skip_special_tokens gives it.

        Raises:
          ValueError: a negative id, such as the -100 of ignored labels.
        """
        ids = [int(i) for i in np.asarray(ids)]
        if ids and min(ids) < 0:
            raise ValueError(f"ids: {min(ids)} is not a token id; drop the ignored positions of labels before decoding")
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self.clean_up_spaces:
            for ending in (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re"):
                text = text.replace(f" {ending}", ending.strip())
        return text

    def batch_decode(self, rows: Iterable[Sequence[int] | np.ndarray], skip_special_tokens: bool = True) -> list[str]:
        """The text of each row of ids, [batch, length] or ragged."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer into a directory, which torch's `AutoTokenizer` and `load_tokenizer` load again.

        The target tokenizer of a pair goes into the `TARGET_FOLDER` of the pair's directory.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(path / "tokenizer.json"))
        for name, content in self.files.items():
            if not isinstance(content, bytes):
                content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
            (path / name).write_bytes(content)


class Tokenizers(NamedTuple):
    """The tokenizers of a pair's source and target, often one object."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def load(cls, source: str | os.PathLike, target: str | os.PathLike) -> Tokenizers:
        """`load_tokenizer` of both sides; one object if both give the same tokenizer."""
        first, second = load_tokenizer(source, "source"), load_tokenizer(target, "target")
        same = first.backend.to_str() == second.backend.to_str() and first.files == second.files
        return cls(first, first if same else second)

    def save(self, path: str | os.PathLike) -> None:
        """Writes both, so that `load(path, path)` reads them."""
        self.source.save(path)
        if self.target is not self.source:
            self.target.save(Path(path) / TARGET_FOLDER)


def load_tokenizer(path_or_id: str | os.PathLike, side: str = "source") -> Tokenizer:
    """Loads a tokenizer from its files.

    Args:
      path_or_id: a run's workdir, a directory as the hub has it (`tokenizer.json`, or `vocab.txt`, or `vocab.json` and
        `merges.txt`, or a sentencepiece `.model`, with the small JSON files beside them), or a hub id, whose files are
        fetched.
      side: "source" or "target". A pair with two tokenizers holds the source's at the root and the target's in the
        folder `target_tokenizer`; without that folder both sides use the root.

    Source: `AutoTokenizer.from_pretrained` of transformers 5.

    Raises:
      FileNotFoundError: no such directory or hub id, or no tokenizer files in it.
      ValueError: unknown side, unknown kind of tokenizer, damaged files, or a tokenizer without a fast form.
      ImportError: the layout needs the extra `tokenizers`, which is not installed.
    """
    if side not in _SIDES:
        raise ValueError(f"side {side!r}: unknown; pass one of {', '.join(map(repr, _SIDES))}")
    names = [*tokenizer_files.FILES, "config.json"]
    directory = local_directory(model_directory(path_or_id), [*names, *(f"{TARGET_FOLDER}/{name}" for name in names)])
    model_config = read_json(directory / "config.json", optional=True)
    part = "encoder"  # also for a target without its own folder, as in torch
    if side == "target" and (directory / TARGET_FOLDER).is_dir():
        directory = directory / TARGET_FOLDER
        part = "decoder"
        model_config = read_json(directory / "config.json", optional=True) or model_config
    if model_config.get("model_type") in ("encoder-decoder", "encoder_decoder"):
        model_config = model_config.get(part, {})

    backend, named, settings, files = tokenizer_files.read_tokenizer(directory, model_config, side)
    limit = settings.get("model_max_length", settings.get("max_len"))
    return Tokenizer(
        backend=backend,
        **{f"{name}_id": backend.token_to_id(token) if token else None for name, token in named.items()},
        max_length=int(limit) if limit is not None and limit < _NO_LIMIT else None,
        truncation_side=settings.get("truncation_side", "right"),
        padding_side=settings.get("padding_side", "right"),
        # transformers 5 cleans up nothing unless asked, and never for BPE.
        clean_up_spaces=bool(settings.get("clean_up_tokenization_spaces"))
        and not isinstance(backend.model, tokenizers.models.BPE),
        files=files,
    )


def check_tokenizer(tokenizer: Any, name: str = "tokenizer") -> None:
    """A ValueError, unless it is a `Tokenizer`, a fast tokenizer of transformers, or None.

    Args:
      name: of the argument that holds it.
    """
    if tokenizer is None or isinstance(tokenizer, Tokenizer) or getattr(tokenizer, "is_fast", False):
        return
    kind = type(tokenizer).__name__
    if hasattr(tokenizer, "is_fast"):
        raise ValueError(
            f"{name} is a {kind} of transformers, which has no fast form; give load_tokenizer(path) of its directory"
        )
    raise ValueError(f"{name} is a {kind}; give what load_tokenizer returns, or a fast tokenizer of transformers")


def save_tokenizer(tokenizer: Any, path: str | os.PathLike) -> None:
    """Writes a tokenizer that `check_tokenizer` accepts; transformers' own writes itself."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(path)
    elif tokenizer is not None:
        tokenizer.save_pretrained(path)


def as_tokenizer(tokenizer: Any, name: str = "tokenizer") -> Tokenizer:
    """The `Tokenizer` with the ids of a fast tokenizer of transformers; a `Tokenizer` is returned as it is.

    Raises:
      ValueError: as `check_tokenizer`.
    """
    if not hasattr(tokenizer, "is_fast"):
        return tokenizer
    check_tokenizer(tokenizer, name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return load_tokenizer(Path(folder))


def pad(
    ids: Sequence[Sequence[int]], pad_token_id: int, length: int | None = None, side: str = "right", multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of ids to one length.

    Args:
      length: of a padded row; None for that of the longest. Either is rounded up to a multiple of `multiple`.
      side: "right" or "left", where the padding goes.

    Returns:
      (input_ids, attention_mask), both int32 [batch, length]; the mask is 1 on the given ids and 0 on the padding.

    Raises:
      ValueError: a row longer than `length`, no pad id, or an unknown side.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side {side!r}: unknown; pass 'right' or 'left'")
    if pad_token_id is None:
        raise ValueError("pad_token_id None: this tokenizer has no pad token; pass another id, such as its end_id")
    if multiple < 1:
        raise ValueError(f"multiple {multiple}: not a positive number; pass 1 for no rounding")
    longest = max(map(len, ids), default=0)
    if length is not None and longest > length:
        raise ValueError(f"length {length}: shorter than a row of {longest} ids; give encode_batch a max_length")
    length = -(-(longest if length is None else length) // multiple) * multiple
    input_ids = np.full((len(ids), length), pad_token_id, np.int32)
    attention_mask = np.zeros((len(ids), length), np.int32)
    for row, values in enumerate(ids):
        where = slice(0, len(values)) if side == "right" else slice(length - len(values), length)
        input_ids[row, where] = values
        attention_mask[row, where] = 1
    return input_ids, attention_mask
