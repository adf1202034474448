"""The systems that are compared, the sizes of their models, and how their processes are started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seq2seq_jax.config import nearest
from seq2seq_jax.config.validation import check
from tools.benchmarks.peers.processes import Peer, environment, make_model
from tools.log import log


class Size(NamedTuple):
    """The size of both sides of a pair."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int = 30522
    positions: int = 512

    @property
    def bert(self) -> dict[str, Any]:
        """A side as the content of a config.json of BERT."""
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
    """One system of the comparison.

    Attributes:
      peer: the name of its environment and of its programs, `<peer>_decode.py` and `<peer>_train.py`.
      decode, train: the devices ("cpu", "gpu") on which it decodes and trains here.
      bart: whether it decodes a BART in place of a pair of BERTs. corpus: whether it can decode a pair's texts.
      setting: arguments of its `load` beyond device, dtype, threads and directory.
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
    """The systems of these names; without names, all that do `work` ("decode" or "train") on `device`.

    Raises:
      ValueError: for an unknown name, or for a system that does not do `work` on `device`.
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
    """Starts the systems' processes, each with its model loaded, and ends them after the block. Gives them by name.

    Args:
      size: one of `SIZES` (random weights, the same for all but CTranslate2), or the directory of a pair.
      environments: the directory of the other systems' environments; models are kept there too.
      in_place: all use the running Python.
      work: "decode" or "train". In training the parameters are float32, whatever the dtype of the computation.
      setting: further arguments of every system's `load`.
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
            log(f"starting {system.name} ({size})")
            arguments = {**common, **setting, "directory": str(directories[system.name]), **system.setting}
            peers[system.name] = Peer(system.name, pythons[system.name], f"{system.peer}_{work}.py", arguments)
            stack.callback(peers[system.name].close)
        yield peers


def _model(system: System, size: str, python: Path, environments: Path, dtype: str) -> Path:
    """The directory of a model with random weights, which is written if it does not exist."""
    content, models = json.dumps(SIZES[size]._asdict()), environments / "models"
    if system.bart:
        return make_model(models / f"bart-{size}", python, "convert_bart.py", content)
    ours = environment("ours", environments)
    return make_model(models / f"pair-{size}-{dtype}", ours, "write_pair.py", dtype, content)
