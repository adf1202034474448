"""Converts pairs: PyTorch checkpoints to one pair, a pair to an Orbax directory, and either back to what torch loads.

Join two checkpoints:        scripts/convert.py --encoder=DIR --decoder=DIR --output=DIR
Torch to Orbax, or back:     scripts/convert.py --input=DIR --output=DIR --to=orbax|torch

Prints what became of every tensor. DIR may be a hub id where something is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import command
from absl import app, flags

if TYPE_CHECKING:
    from seq2seq_jax import Tokenizer

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(command)
flags.DEFINE_string("input", None, "A pair: a directory that torch, save_pretrained or save_orbax wrote, or a hub id.")
flags.DEFINE_string("encoder", None, "With --decoder: the encoder's checkpoint, to be joined.")
flags.DEFINE_string("decoder", None, "With --encoder: the decoder's checkpoint, to be joined.")
flags.DEFINE_string("output", None, "The directory to write.", required=True)
flags.DEFINE_enum("to", "torch", ["torch", "orbax"], "What to write.")
flags.DEFINE_string("max_shard_size", "5GB", "Size at which safetensors are split.")
flags.DEFINE_enum(
    "dtype", None, ["float32", "float16", "bfloat16"], "Of the tensors written; default: as in the source."
)
flags.DEFINE_string("cross_attention_init", None, "For joining: normal, zero, self_attention, identity or aligned.")
flags.DEFINE_string("head_init", "normal", "For joining: normal or identity.")
flags.DEFINE_enum("tie_encoder_decoder", "false", ["false", "true", "embeddings"], "For joining: what is shared.")
flags.DEFINE_multi_string("set", [], "For joining: a field of a side, such as encoder_num_hidden_layers=3.")


def find_tokenizer(path: str, side: str) -> Tokenizer | None:
    """The tokenizer beside the weights, if there is one."""
    import seq2seq_jax as s2s

    try:
        return s2s.load_tokenizer(path, side=side)
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"no {side} tokenizer is written: {error}")
        return None


def main(argv: list[str]) -> None:
    command.check_no_arguments(argv)
    if (FLAGS.input is None) == (FLAGS.encoder is None or FLAGS.decoder is None):
        raise app.UsageError("give either --input, or both --encoder and --decoder")
    if FLAGS.to == "orbax" and FLAGS.dtype is not None:
        raise app.UsageError("--dtype is for --to=torch; an Orbax directory holds the parameters as they are")

    import seq2seq_jax as s2s
    from seq2seq_jax.config import parse_settings
    from seq2seq_jax.text.tokenizer import TARGET_FOLDER
    from seq2seq_jax.weights.files import local_directory

    if FLAGS.input is not None:
        pretrained, source, target = s2s.from_pretrained(FLAGS.input), FLAGS.input, FLAGS.input
    else:
        source, target = FLAGS.encoder, FLAGS.decoder
        tie = {"false": False, "true": True}.get(FLAGS.tie_encoder_decoder, FLAGS.tie_encoder_decoder)
        pretrained = s2s.from_encoder_decoder_pretrained(
            source,
            target,
            tie_encoder_decoder=tie,
            cross_attention_init=FLAGS.cross_attention_init,
            head_init=FLAGS.head_init,
            **parse_settings(FLAGS.set),
        )
    tokenizers = {"tokenizer": find_tokenizer(source, "source")}
    if FLAGS.input is None or (local_directory(FLAGS.input) / TARGET_FOLDER).is_dir():
        tokenizers["target_tokenizer"] = find_tokenizer(target, "target")
    if FLAGS.to == "torch":
        s2s.save_pretrained(
            FLAGS.output, pretrained, dtype=FLAGS.dtype, max_shard_size=FLAGS.max_shard_size, **tokenizers
        )
    else:
        s2s.save_orbax(FLAGS.output, pretrained, **tokenizers)
    print(pretrained.report)
    print(f"wrote {FLAGS.output} ({FLAGS.to})")


if __name__ == "__main__":
    command.run(main)
