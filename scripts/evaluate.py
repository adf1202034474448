"""Scores a pair on a data file: a table on the screen, scores.json and predictions.jsonl in --output.

scripts/evaluate.py --model=runs/quickstart --data=debian-synopsis:validation --output=runs/quickstart/evaluation

--model is the workdir of a run (whose columns, lengths and prefixes are followed), a directory that save_pretrained or
torch wrote, or a hub id. --data is a .jsonl, .csv, .tsv or .parquet file (all but Parquet also as .gz, .bz2, .xz or
.zst), a shipped set, or a directory or hub id with a split.

Beside the scores stand the metrics' signatures: which version, and what splits texts into words. ROUGE of most scripts
needs --rouge_tokenizer=unicode, which is taken by itself where most letters of the references are beyond a-z; BLEU of
Chinese needs --bleu_tokenize=zh, of Japanese ja-mecab, of Korean ko-mecab.

A model that one device does not hold is split over several: --tensor=4, --fsdp=2, or both. Their product divides the
number of all devices, those of other processes (--distributed) included.
"""

import dataclasses
import json
from pathlib import Path

import command
import mesh_flags
import model_flags
import process_flags
from absl import flags

from seq2seq_jax.config import (
    BLEU_TOKENIZERS,
    METRICS,
    ROUGE_TOKENIZERS,
    DataConfig,
    EncoderDecoderConfig,
)

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(mesh_flags)
flags.adopt_module_key_flags(process_flags)
flags.DEFINE_string("data", None, "The examples.", required=True)
flags.DEFINE_string("output", None, "A directory for scores.json and predictions.jsonl.", required=True)
flags.DEFINE_list("metrics", ["rouge", "bleu"], f"Any of {', '.join(METRICS)}.")
flags.register_validator("metrics", lambda names: set(names) <= {*METRICS}, f"give any of {', '.join(METRICS)}")
flags.DEFINE_enum("rouge_tokenizer", "auto", ROUGE_TOKENIZERS, "The tokenizer for ROUGE.")
flags.DEFINE_enum("bleu_tokenize", "13a", BLEU_TOKENIZERS, "sacrebleu's tokenizer for BLEU.")
flags.DEFINE_integer("limit", None, "At most so many examples.")
flags.DEFINE_string(
    "source_field", None, "Column of the texts to read (within objects: a.b); default: as in training, or 'document'."
)
flags.DEFINE_string("target_field", None, "Column of the references; default: as in training, or 'summary'.")
flags.DEFINE_string("subset", None, "Which configuration of a hub data set.")
flags.DEFINE_integer("max_target_length", None, "In tokens, for the loss; default: as in training, or the model's.")


def data_settings(known: DataConfig | None, config: EncoderDecoderConfig) -> DataConfig:
    """The run's own, or what fits the model; then what the flags say."""
    fitting = {"max_source_length": config.encoder.max_positions, "max_target_length": config.decoder.max_positions}
    settings = known or DataConfig(train=FLAGS.data, **fitting)
    names = ("source_field", "target_field", "source_prefix", "subset", "max_source_length", "max_target_length")
    return dataclasses.replace(settings, **{n: FLAGS[n].value for n in names if FLAGS[n].value is not None})


def main(argv: list[str]) -> None:
    command.check_no_arguments(argv)
    import jax

    from seq2seq_jax.data.encoding import encode_pairs
    from seq2seq_jax.data.sources import load_pairs
    from seq2seq_jax.evaluation.metrics import check_tokenizers
    from seq2seq_jax.inference.evaluate import evaluate
    from seq2seq_jax.parallel import multihost
    from seq2seq_jax.parallel.progress import log

    chosen = {name: FLAGS[name].value for name in ("rouge_tokenizer", "bleu_tokenize")}
    check_tokenizers(FLAGS.metrics, **chosen)
    process_flags.start()
    mesh = mesh_flags.mesh_over(jax.devices())
    with jax.set_mesh(mesh):
        pretrained, tokenizers, known = model_flags.load(mesh)
        settings = data_settings(known, pretrained.config)
        pairs = load_pairs(
            FLAGS.data,
            source_field=settings.source_field,
            target_field=settings.target_field,
            limit=FLAGS.limit,
            subset=settings.subset,
        )
        examples = encode_pairs(pairs, *tokenizers, settings, FLAGS.data)
        log(f"{FLAGS.data}: {examples.counts}")
        result = evaluate(
            pretrained,
            examples,
            tokenizers,
            mesh,
            metrics=FLAGS.metrics,
            tokenizers_of_metrics=chosen,
            batch_size=FLAGS.batch_size,
            progress=multihost.is_first(),
        )
    if not multihost.is_first():
        return
    output = Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    content = {"model": FLAGS.model, "data": FLAGS.data, "examples": len(result.samples), **result.scores}
    content["signatures"] = result.signatures
    (output / "scores.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with (output / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in result.samples)
    width = max(map(len, result.scores))
    for name, value in result.scores.items():
        print(f"{name.ljust(width)}  {value:10.2f}")
    for name, signature in result.signatures.items():
        print(f"{name}: {signature}")
    print(f"wrote {output / 'scores.json'} and {output / 'predictions.jsonl'}")


if __name__ == "__main__":
    command.run(main)
