"""Flags of the scripts that use a pair: which one, its tokenizers, how it decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from seq2seq_jax.inference.trained import Trained

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "A run's workdir, a directory that we or torch saved, or a hub id.", required=True)
flags.DEFINE_integer("step", None, "Of a workdir: this checkpoint; default: the exported one, or else the best.")
flags.DEFINE_string("source_tokenizer", None, "Where the source's tokenizer is, if not beside the model.")
flags.DEFINE_string("target_tokenizer", None, "Where the target's tokenizer is, if not beside the model.")
flags.DEFINE_string("source_prefix", None, "Put before each source; default: as in training.")
flags.DEFINE_integer("max_source_length", None, "Longer sources are cut to so many tokens; default: as in training.")
flags.DEFINE_integer("batch_size", 16, "Texts decoded at once.", lower_bound=1)
flags.DEFINE_bool("int8", False, "Decode with int8 kernels: quicker on a CPU, and not quite the same.")
flags.DEFINE_multi_string("set", [], "A generation setting, name=value.")


def load(mesh: Mesh) -> Trained:
    """The pair that the flags name, its generation_config changed as they say."""
    from seq2seq_jax.config import parse_settings
    from seq2seq_jax.inference.trained import load_trained
    from seq2seq_jax.pretrained.pair import quantize

    changes = parse_settings(FLAGS.set)
    trained = load_trained(
        FLAGS.model,
        step=FLAGS.step,
        source_tokenizer=FLAGS.source_tokenizer,
        target_tokenizer=FLAGS.target_tokenizer,
        mesh=mesh,
    )
    generation = trained.pretrained.generation_config.replace(**changes)
    pretrained = trained.pretrained.replace(generation_config=generation)
    return trained._replace(pretrained=quantize(pretrained) if FLAGS.int8 else pretrained)
