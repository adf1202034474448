"""The systems that are compared, the models that they decode, and how they are started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seq2seq_jax.config import nearest
from seq2seq_jax.config.validation import check
from tools.benchmarks.peers.processes import Peer, environment, say, written


class Size(NamedTuple):
    """Both sides of a pair: layers of each, widths, vocabulary, positions."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int = 30522
    positions: int = 512

    @property
    def bert(self) -> dict[str, Any]:
        """A side as BERT's config.json says it."""
        return {
            "model_type": "bert",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions,
        }


SIZES = {"base": Size(12, 768, 12, 3072), "small": Size(6, 384, 12, 1536)}
SIZES |= {f"small-{count}k": SIZES["small"]._replace(vocab=1000 * count) for count in (8, 120)}  # other vocabularies
EVERYWHERE = ("cpu", "gpu")
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}  # by device


class System(NamedTuple):
    """One column of the comparison.

    Attributes:
      peer: names the environment and the programs, `<peer>_decode.py` and `<peer>_train.py`.
      decode, train: the devices ("cpu", "gpu") on which it does that here.
      bart: decodes a BART, not a pair of BERTs. corpus: can decode a pair's texts.
      setting: what its `load` is told beyond device, dtype, threads and directory.
    """

    name: str
    peer: str
    decode: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    bart: bool = False
    corpus: bool = False
    setting: Mapping[str, Any] = {}


SYSTEMS = {
    system.name: system
    for system in (
        System("ours", "ours", EVERYWHERE, EVERYWHERE, corpus=True),
        System("ours-int8", "ours", ("cpu",), corpus=True, setting={"int8": True}),
        System("torch", "torch", EVERYWHERE, EVERYWHERE, corpus=True),
        System("torch-compiled", "torch", ("gpu",), EVERYWHERE, setting={"compile": True}),
        System("flax", "flax", ("cpu",), ("cpu",)),
        System("ctranslate2", "ctranslate2", ("cpu",), bart=True, setting={"compute_type": "float32"}),
        System("ctranslate2-int8", "ctranslate2", ("cpu",), bart=True, setting={"compute_type": "int8"}),
    )
}


def parse_systems(names: Iterable[str], device: str, work: str = "decode") -> tuple[System, ...]:
    """Systems by name; none: all that do `work` ("decode" or "train") on `device`.

    Raises:
      ValueError: for an unknown name, or one that does not do it there.
    """
    able = {name: system for name, system in SYSTEMS.items() if device in getattr(system, work)}
    for name in names:
        check(name in SYSTEMS, f"system {name!r} is unknown: {nearest(name, SYSTEMS)}")
        check(name in able, f"system {name!r} does not {work} on device {device!r}; there: {', '.join(able)}")
    return tuple(able[name] for name in dict.fromkeys(names)) or tuple(able.values())


@contextmanager
def started(
    systems: Sequence[System],
    size: str,
    device: str,
    environments: Path,
    in_place: bool,
    work: str = "decode",
    **setting: Any,
) -> Iterator[dict[str, Peer]]:
    """The systems' processes by name, each with its model read; they are ended at the end of the block.

    Args:
      size: of `SIZES` (random weights, the same for all but CTranslate2), or the directory of a pair.
      environments: of the others; models are kept there too.
      in_place: all use the running Python.
      work: "decode", or "train" (the parameters are float32 then, whatever is computed in).
      setting: told to every system.
    """
    stored = "float32" if work == "train" else DTYPES[device]
    common = {"device": device, "dtype": DTYPES[device], "threads": len(os.sched_getaffinity(0))}
    pythons = {system.name: environment(system.peer, environments, in_place) for system in systems}
    directories = {
        system.name: _model(system, size, pythons[system.name], environments, stored)
        if size in SIZES
        else Path(size).absolute()
        for system in systems
    }
    with ExitStack() as stack:
        peers = {}
        for system in systems:
            say(f"starting {system.name} ({size})")
            told = {**common, **setting, "directory": str(directories[system.name]), **system.setting}
            peers[system.name] = Peer(system.name, pythons[system.name], f"{system.peer}_{work}.py", told)
            stack.callback(peers[system.name].close)
        yield peers


def _model(system: System, size: str, python: Path, environments: Path, dtype: str) -> Path:
    """The directory of a model with random weights, written if need be."""
    content, models = json.dumps(SIZES[size]._asdict()), environments / "models"
    if system.bart:
        return written(models / f"bart-{size}", python, "convert_bart.py", content)
    ours = environment("ours", environments)
    return written(models / f"pair-{size}-{dtype}", ours, "write_pair.py", dtype, content)
