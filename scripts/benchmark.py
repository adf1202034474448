"""Measures loading, decoding, training or batching, and prints a table.

scripts/benchmark.py load [--devices=8] [--layers=12]    memory while a random sharded checkpoint is read
scripts/benchmark.py decode [--rows=headline] [--systems=ours,torch] [--output=FILE]    ours beside others
scripts/benchmark.py train [--rows=headline] [--systems=ours,torch] [--output=FILE]     steps of ours beside others
scripts/benchmark.py batches [--pair=DIR] [--data=DATA] [--ways=padded,packed]     an epoch padded, in buckets, packed

decode's --rows is a comma list of: headline, grid (batch 1, 4, 16; beams 1, 4; source 128, 512; two sizes), growth (a
token's cost from 16 to 128 steps), corpus (1,000 texts to their ends, by --pair), all, or shapes such as
base:4x4x128x64 (SIZE:BATCHxBEAMSxSOURCExSTEPS; sizes base, small). train's: headline, cost (longer texts, other
batches and vocabularies), all, or shapes such as base:8x128x64 (SIZE:BATCHxSOURCExTARGET; sizes small-8k and
small-120k, too, which are their vocabularies). The others' environments are made on first use.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from absl import app, flags

# `tools` is in no wheel: it stands beside this script's folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FLAGS = flags.FLAGS
flags.DEFINE_integer("layers", 12, "load: layers of each side; 12 make a checkpoint of 1 GB.")
flags.DEFINE_integer("devices", 1, "load: virtual CPU devices, over which the parameters are split (fsdp).")
flags.DEFINE_list("rows", ["headline"], "decode, train: what to measure; see above.")
flags.DEFINE_list("systems", [], "decode, train: which systems; default: all of the device.")
flags.DEFINE_integer("repeats", 3, "decode, train: calls after the first; the median counts.")
flags.DEFINE_integer("turn", 1, "decode, train: how many of these one system makes in a row, as training does.")
flags.DEFINE_string(
    "environments",
    "~/.cache/seq2seq_jax/benchmark",
    "decode, train: a directory with the others' environments (torch, flax, ctranslate2); what is missing is made.",
)
flags.DEFINE_string("device", "cpu", "decode, train: cpu (float32) or gpu (bfloat16).")
flags.DEFINE_multi_string(
    "set", [], "train, batches: a field of our run's config, name=value (attention_impl=cudnn, remat=none)."
)
flags.DEFINE_list("ways", [], "batches: which ways, of padded, 4 buckets, 8 buckets, packed; default: all.")
flags.DEFINE_bool("in_place", False, "decode, train: this Python for all systems.")
flags.DEFINE_string(
    "pair", "runs/quickstart/pretrained", "decode: the directory of the corpus row's pair; batches: of the tokenizers."
)
flags.DEFINE_string(
    "data", "debian-synopsis:train", "decode: the corpus row's texts, in a column 'document'; batches: with 'summary'."
)
flags.DEFINE_string("output", None, "decode, train: a file for the figures as JSON lines.")


def load() -> None:
    if FLAGS.devices > 1:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={FLAGS.devices}"
    from seq2seq_jax.parallel.mesh import make_mesh
    from tools.benchmarks.loading import measure_load, write_random_checkpoint

    with tempfile.TemporaryDirectory() as directory:
        child = os.fork()  # so that the memory that writing takes does not count
        if child == 0:
            write_random_checkpoint(Path(directory), FLAGS.layers)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError("the checkpoint could not be written")
        figures = measure_load(Path(directory), make_mesh(fsdp=FLAGS.devices) if FLAGS.devices > 1 else None)
    megabytes = lambda count: f"{count / 1e6:.0f}"
    bound = figures.tree + figures.largest + figures.tensor
    print("| devices | tree MB | + largest parameter + one tensor MB | peak MB | each device MB | seconds |")
    print("|---|---|---|---|---|---|")
    row = [FLAGS.devices, *map(megabytes, (figures.tree, bound, figures.peak, max(figures.devices)))]
    print("| " + " | ".join(map(str, [*row, f"{figures.seconds:.1f}"])) + " |")


def _options():
    from seq2seq_jax.config import parse_settings
    from tools.benchmarks.side_by_side import Options

    given = {name: FLAGS[name].value for name in ("device", "repeats", "turn", "environments", "in_place", "data")}
    return Options(**given, config=parse_settings(FLAGS.set))


def decode() -> None:
    from tools.benchmarks import decoding

    options = _options()
    report("decode", decoding, decoding.parse_rows(FLAGS.rows, options.device, FLAGS.pair), options)


def train() -> None:
    from tools.benchmarks import training

    options = _options()
    report("train", training, training.parse_rows(FLAGS.rows, options.device), options)


def batches() -> None:
    from tools.benchmarks import batches

    results = []
    with open(FLAGS.output or os.devnull, "w", encoding="utf-8") as file:
        ways = batches.parse_ways(FLAGS.ways)
        for result in batches.measure(*batches.read(FLAGS.data, FLAGS.pair), _options(), ways):
            results.append(result)
            print(json.dumps(batches.as_json(result)), file=file, flush=True)
    print(batches.table(results))


def report(work, subject, rows, options) -> None:
    """Measures rows with tools.benchmarks.decoding or .training, and prints the table."""
    from tools.benchmarks.peers.systems import parse_systems
    from tools.benchmarks.side_by_side import machine

    systems, results = parse_systems(FLAGS.systems, options.device, work), []
    with open(FLAGS.output or os.devnull, "w", encoding="utf-8") as file:
        print(json.dumps(machine()), file=file, flush=True)
        try:
            for found in subject.measure(rows, systems, options):
                results += found
                file.writelines(json.dumps(subject.as_json(result, found)) + "\n" for result in found)
                file.flush()
        finally:  # a failing peer must not lose hours of results
            print(subject.table(results))


SUBJECTS = {"load": load, "decode": decode, "train": train, "batches": batches}


def main(argv):
    if len(argv) != 2 or argv[1] not in SUBJECTS:
        raise app.UsageError(f"give one subject of: {', '.join(SUBJECTS)}")
    SUBJECTS[argv[1]]()


if __name__ == "__main__":
    app.run(main)
