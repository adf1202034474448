"""Writes a run's metrics and samples: metrics.jsonl, samples.txt, TensorBoard, and lines on the screen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from seq2seq_jax.inference.evaluate import Evaluation, Sample
from seq2seq_jax.parallel.multihost import is_first
from seq2seq_jax.parallel.progress import log

METRICS, SAMPLES, TENSORBOARD = "metrics.jsonl", "samples.txt", "tensorboard"
NUM_SHOWN = 3


class MetricWriter:
    """Writes metrics and samples into a run's workdir. What was written there beyond step `start` is removed."""

    def __init__(self, workdir: Path, start: int):
        self._open = is_first()
        if not self._open:
            return
        _trim_metrics(workdir / METRICS, start)
        _trim_samples(workdir / SAMPLES, start)
        self._metrics = (workdir / METRICS).open("a", encoding="utf-8")
        self._samples = workdir / SAMPLES
        self._board = SummaryWriter(str(workdir / TENSORBOARD), purge_step=start + 1)

    def write_scalars(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Writes a line of metrics.jsonl, {"step": ..., "<group>/<name>": ...}, and TensorBoard's scalars."""
        if not self._open:
            return
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **named}) + "\n")
        self._metrics.flush()
        for name, value in named.items():
            self._board.add_scalar(name, value, step)

    def write_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Writes scores and samples: all of these to samples.txt, the first few to TensorBoard and the screen."""
        self.write_scalars(step, evaluation.scores, "eval")
        scores = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.scores.items())
        log("\n".join([f"step {step}: {scores}", *map(_sample_text, evaluation.samples[:NUM_SHOWN])]))
        if self._open:
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(
                    f"=== step {step}\n\n" + "".join(_sample_text(sample) + "\n" for sample in evaluation.samples)
                )
            for number, sample in enumerate(evaluation.samples[:NUM_SHOWN]):
                self._board.add_text(f"samples/{number}", _sample_text(sample).replace("\n", "\n\n"), step)
            self._board.flush()

    def close(self) -> None:
        if self._open:
            self._metrics.close()
            self._board.close()


def _sample_text(sample: Sample) -> str:
    flat = [" ".join(text.split()) for text in sample]
    return f"source:    {flat[0]}\nreference: {flat[1]}\noutput:    {flat[2]}\n"


def _trim_metrics(path: Path, start: int) -> None:
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= start and start > 0]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _trim_samples(path: Path, start: int) -> None:
    if path.exists():
        parts = re.split(r"^(?==== step \d+$)", path.read_text(encoding="utf-8"), flags=re.M)
        kept = [p for p in parts if p and start > 0 and int(p.split()[2]) <= start]
        path.write_text("".join(kept), encoding="utf-8")
