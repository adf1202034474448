"""Measures the memory and the time that loading a checkpoint takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs


class LoadFigures(NamedTuple):
    """Bytes and seconds.

    Attributes:
      tree: of all parameters. largest: of the largest parameter as stored. tensor: of the largest tensor of the file.
      peak: the highest resident memory of the process, less that before. devices: of the parameters on each device.
    """

    tree: int
    largest: int
    tensor: int
    peak: int
    devices: tuple[int, ...]
    seconds: float


def write_random_checkpoint(directory: Path, layers: int = 12) -> None:
    """Writes a pair of two BERTs of base width with random weights, in shards of 200 MB; 12 layers a side make 1 GB."""
    bert = {"model_type": "bert", "num_hidden_layers": layers}
    pair = from_encoder_decoder_configs(bert, bert, decoder_start_token_id=101, pad_token_id=0)
    save_pretrained(directory, pair, max_shard_size="200MB")


def measure_load(directory: Path, mesh: Mesh | None) -> LoadFigures:
    """Loads a pair and watches the memory of the process. It needs a process of its own and Linux."""
    jax.block_until_ready(jax.numpy.zeros(1))
    before, highest, done = _resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    pair = from_pretrained(directory, mesh=mesh)
    jax.block_until_ready(pair.params)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(pair.params)
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    stacked = max(leaf.nbytes for leaf in leaves)
    table = pair.config.decoder.vocab_size * pair.config.decoder.hidden_size * 4
    tree = sum(leaf.nbytes for leaf in leaves)
    return LoadFigures(tree, stacked, table, highest[0] - before, tuple(held.values()), seconds)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
