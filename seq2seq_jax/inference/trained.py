"""A pair to use on texts: with its tokenizers, and how the texts of its run were prepared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from seq2seq_jax.config import DataConfig, from_mapping
from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.workdir import CONFIG, is_workdir


class Trained(NamedTuple):
    """A pair to use. data: how the texts of its run were prepared; None where that is not known."""

    pretrained: Pretrained
    tokenizers: Tokenizers
    data: DataConfig | None


def load_trained(
    path_or_id: str | os.PathLike,
    *,
    step: int | None = None,
    source_tokenizer: str | Path | None = None,
    target_tokenizer: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """What `from_pretrained` and `load_tokenizer` give, and the data settings of a run's workdir.

    Args:
      path_or_id, step, mesh: as in `from_pretrained`.
      source_tokenizer, target_tokenizer: where the tokenizers are, if not beside the pair.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
    """
    pretrained = from_pretrained(path_or_id, step=step, mesh=mesh)
    tokenizers = Tokenizers.load(source_tokenizer or path_or_id, target_tokenizer or path_or_id)
    data = None
    if is_workdir(path_or_id):
        config = read_json(Path(path_or_id).expanduser() / CONFIG)
        data = from_mapping(DataConfig, config["data"], "config.data")
    return Trained(pretrained, tokenizers, data)
