"""Text in, text out, through a pair of ours or one of torch's.

From the command line:   scripts/generate.py --model=runs/quickstart --text="A package that ..."
From a file:             scripts/generate.py --model=DIR --input=articles.txt --output=summaries.txt
From standard input:     cat articles.txt | scripts/generate.py --model=DIR

One text is one line. DIR is the workdir of a run, a directory that save_pretrained or torch wrote, or a hub id. A
workdir's way with texts (prefix, greatest length) is followed. The model's generation_config.json says how to decode,
and --set changes it: --set=num_beams=4 --set=max_new_tokens=60 --set=do_sample=true
"""

import sys

import jax
from absl import app, flags, logging

from seq2seq_jax.config import parse_settings
from seq2seq_jax.evaluation.corpus import decode_texts
from seq2seq_jax.training.checkpoints import load_trained

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "A run's workdir, a directory that we or torch saved, or a hub id.", required=True)
flags.DEFINE_integer("step", None, "Of a workdir: this checkpoint; default: the exported one, or else the best.")
flags.DEFINE_multi_string("text", [], "A text; may be given again for more.")
flags.DEFINE_string("input", None, "A file with one text a line; '-' or nothing: standard input.")
flags.DEFINE_string("output", None, "A file for the outputs, one a line; nothing: standard output.")
flags.DEFINE_string("source_tokenizer", None, "Where the source's tokenizer is, if not beside the model.")
flags.DEFINE_string("target_tokenizer", None, "Where the target's tokenizer is, if not beside the model.")
flags.DEFINE_string("source_prefix", None, "Put before each text; default: as in training.")
flags.DEFINE_integer("max_source_length", None, "Longer texts are cut to so many tokens; default: as in training.")
flags.DEFINE_integer("batch_size", 16, "Texts decoded at once.")
flags.DEFINE_integer("seed", 0, "Of sampling.")
flags.DEFINE_multi_string("set", [], "A generation setting, name=value.")


def read_texts() -> list[str]:
    if FLAGS.text:
        return list(FLAGS.text)
    if FLAGS.input in (None, "-"):
        return [line.rstrip("\n") for line in sys.stdin]
    with open(FLAGS.input, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def main(argv):
    logging.set_verbosity(logging.ERROR)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; give texts as --text=... or in a file")
    changes = parse_settings(FLAGS.set)
    texts = read_texts()
    pretrained, tokenizers, data = load_trained(
        FLAGS.model,
        step=FLAGS.step,
        source_tokenizer=FLAGS.source_tokenizer,
        target_tokenizer=FLAGS.target_tokenizer,
    )
    if changes.get("do_sample", pretrained.generation_config.do_sample):
        changes["rng"] = jax.random.key(FLAGS.seed)
    prefix, longest = FLAGS.source_prefix, FLAGS.max_source_length
    if data is not None:
        prefix = data.source_prefix if prefix is None else prefix
        longest = data.max_source_length if longest is None else longest
    outputs = decode_texts(
        pretrained,
        [(prefix or "") + text for text in texts],
        tokenizers,
        batch_size=FLAGS.batch_size,
        max_source_length=longest,
        progress=len(texts) > FLAGS.batch_size,
        **changes,
    )
    lines = [text for hypotheses in outputs for text in hypotheses]
    if FLAGS.output is None:
        print("\n".join(lines))
    else:
        with open(FLAGS.output, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    app.run(main)
