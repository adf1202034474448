"""Fine-tuning a warm-started pair: from a config to a directory that torch loads."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.data.pipeline import EncodedPairs, encode_pairs, make_batch, prefetch
from seq2seq_jax.data.plan import batch_indices
from seq2seq_jax.data.sources import Pair, read_pairs
from seq2seq_jax.data.text import Tokenizer, load_tokenizer
from seq2seq_jax.evaluation.corpus import decode_texts
from seq2seq_jax.evaluation.rouge import rouge
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training.optimizers import learning_rate, optimizer
from seq2seq_jax.training.step import TrainState, make_train_step
from seq2seq_jax.weights.pretrained import (
    Pretrained,
    from_encoder_decoder_configs,
    from_encoder_decoder_pretrained,
    save_pretrained,
)

EXPORT = "pretrained"


def train(config: TrainConfig, workdir: str | Path) -> Path:
    """Runs one fine-tuning and returns the exported directory.

    The workdir gets config.json (as resolved), weights.txt (the weight report), metrics.jsonl, samples.txt, scores.json
    and `pretrained/`.

    Raises:
      FloatingPointError: if the loss is not finite; names the step.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n")

    # Data.
    source, target = load_tokenizer(config.encoder, "source"), load_tokenizer(config.decoder, "target")
    pairs = {split: _read(config, split) for split in ("train", "validation")}
    encoded = encode_pairs(
        pairs["train"],
        source,
        target,
        max_source_length=config.data.max_source_length,
        max_target_length=config.data.max_target_length,
    )
    print(
        f"{len(pairs['train'])} training pairs ({encoded.truncated_sources} sources and {encoded.truncated_targets}"
        f" targets cut), {len(pairs['validation'])} validation pairs"
    )

    # Model.
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        pretrained = warm_start(config, mesh, source, target)
        print(pretrained.report)
        (workdir / "weights.txt").write_text(str(pretrained.report) + "\n")

        # Training.
        params = run_steps(config, pretrained, mesh, batches(config, encoded, source), workdir / "metrics.jsonl")
        pretrained = pretrained.replace(params=params)

        # Evaluation and export.
        scores = evaluate(config, pretrained, pairs["validation"], source, target, workdir)
        export = workdir / EXPORT
        save_pretrained(export, pretrained, tokenizer=source, target_tokenizer=_unless_same(target, config))
    for name, value in scores.items():
        print(f"{name} {value:.2f}")
    print(f"wrote {export} (torch's EncoderDecoderModel.from_pretrained loads it)")
    return export


def _read(config: TrainConfig, split: str) -> list[Pair]:
    fields = {"source_field": config.data.source_field, "target_field": config.data.target_field}
    return read_pairs(getattr(config.data, split), limit=getattr(config.data, f"{split}_limit"), **fields)


def _unless_same(target: Tokenizer, config: TrainConfig) -> Tokenizer | None:
    return None if config.encoder == config.decoder else target


def warm_start(config: TrainConfig, mesh, source: Tokenizer, target: Tokenizer) -> Pretrained:
    """The pair that the config asks for, with its generation settings."""
    pretrained = from_encoder_decoder_pretrained(
        config.encoder, config.decoder, mesh=mesh, seed=config.seed, **config.warm_start
    )
    for role, tokenizer in (("encoder", source), ("decoder", target)):
        rows = getattr(pretrained.config, role).vocab_size
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"the {role}'s tokenizer has {tokenizer.vocab_size} tokens and its embedding table {rows} rows; they do"
                " not belong together, or the table needs resize_token_embeddings"
            )
    generation = pretrained.generation_config.replace(**config.generation)
    model = pretrained.model.clone(remat=config.remat)
    pretrained = pretrained.replace(model=model, generation_config=generation)
    if config.random_weights:
        sides = [json.loads(side.source_json) for side in (pretrained.config.encoder, pretrained.config.decoder)]
        tokens = {"decoder_start_token_id": pretrained.config.decoder_start_token_id}
        tokens |= {"pad_token_id": pretrained.config.pad_token_id, "eos_token_id": pretrained.config.eos_token_ids}
        random = from_encoder_decoder_configs(*sides, seed=config.seed, mesh=mesh, **tokens)
        pretrained = random.replace(generation_config=generation)
    return pretrained


def batches(config: TrainConfig, encoded: EncodedPairs, source: Tokenizer):
    """Batch of step 0, 1, 2 ...: each follows from the config and its number alone."""
    lengths = {"source_length": config.data.max_source_length, "target_length": config.data.max_target_length}
    for step in range(config.num_steps):
        indices = batch_indices(step, len(encoded), config.batch_size, seed=config.seed)
        yield make_batch(encoded, indices, source_pad_id=source.pad_token_id or 0, **lengths)


def run_steps(config: TrainConfig, pretrained: Pretrained, mesh, batches, metrics_file: Path) -> Any:
    """Trains for config.num_steps steps and returns the parameters."""
    tx = optimizer(config.optimizer, config.num_steps)
    schedule = learning_rate(config.optimizer, config.num_steps)
    dropout = any(
        rate
        for side in (pretrained.config.encoder, pretrained.config.decoder)
        for rate in (side.dropout, side.attention_dropout, side.activation_dropout, side.embedding_dropout)
    )
    step_fn = make_train_step(pretrained.model, tx, schedule, seed=config.seed, dropout=dropout)
    step_fn = jax.jit(step_fn, donate_argnums=0)
    # The caller's parameters stay usable: the step donates its state.
    state = TrainState.create(jax.tree.map(lambda x: x.copy(), pretrained.params), tx)
    with metrics_file.open("w") as log, tqdm(total=config.num_steps, desc="train", unit="step") as bar:
        previous, start, tokens, since = None, time.perf_counter(), 0, 0
        for number, batch in enumerate(prefetch(batches), 1):
            tokens += int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())
            state, metrics = step_fn(state, shard_batch(batch, mesh))
            # Metrics are read one step late, so that the device never waits for the host.
            if previous is not None:
                _check_finite(previous, number - 1)
            previous = metrics
            bar.update()
            if number % config.log_every == 0 or number == config.num_steps:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _check_finite(metrics, number)
                now = time.perf_counter()
                rate = (tokens - since) / (now - start)
                start, since = now, tokens
                log.write(json.dumps({"step": number, **values, "tokens_per_second": rate}) + "\n")
                log.flush()
                bar.set_postfix(
                    loss=f"{values['loss']:.3f}", lr=f"{values['learning_rate']:.1e}", tokens_s=f"{rate:.0f}"
                )
    return state.params


def _check_finite(metrics: dict[str, jax.Array], step: int) -> None:
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"the loss of step {step} is {loss}; lower optimizer.learning_rate, raise its warmup_steps, or look for"
            " empty targets in the data"
        )


def evaluate(
    config: TrainConfig,
    pretrained: Pretrained,
    pairs: list[Pair],
    source: Tokenizer,
    target: Tokenizer,
    workdir: Path,
) -> dict[str, float]:
    """Decodes the validation pairs; writes samples.txt and scores.json; returns ROUGE (mean F1, 0 to 100)."""
    outputs = decode_texts(
        pretrained,
        [pair.source for pair in pairs],
        source,
        target,
        batch_size=config.eval_batch_size,
        max_source_length=config.data.max_source_length,
        progress=True,
    )
    predictions = [hypotheses[0] for hypotheses in outputs]
    scores = rouge(predictions, [pair.target for pair in pairs])
    with (workdir / "samples.txt").open("w") as file:
        for pair, prediction in zip(pairs, predictions):
            file.write(f"source:    {pair.source}\nreference: {pair.target}\noutput:    {prediction}\n\n")
    for pair, prediction in list(zip(pairs, predictions))[:5]:
        print(f"reference: {pair.target}\noutput:    {prediction}\n")
    (workdir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores
