"""Compiles a run's training step and search without its devices; prints their memory, collectives and least time.

scripts/dryrun.py --config=configs/x.py --topology=v5e:16x16 [--config.mesh.fsdp=8] [--output=FILE.json]
scripts/dryrun.py --config=configs/x.py --devices=8 [--chip=v5e]    virtual CPU devices; bounds as of that chip
scripts/dryrun.py --config=configs/x.py --topology=v5p:4x4x4 --search=5    all meshes, the best five compiled

No weights are read: only the config.json of encoder and decoder, or what --encoder_config and --decoder_config give (a
file, or the JSON itself: '{"model_type": "bert", "num_hidden_layers": 24}'). TPU topologies need libtpu (pip install
'jax[tpu]'), and no TPU. A compilation takes minutes.

The training step computes in config.dtype with float32 parameters, as the run does (--config.dtype=bfloat16 for
bfloat16). The search computes in float32, as the run's evaluation and scripts/generate.py do.
"""

import json
import os
import sys
from pathlib import Path

import config_flag
from absl import app, flags

# `tools` is in no wheel: it stands beside this script's folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIG = config_flag.define()
TOPOLOGY = flags.DEFINE_string("topology", None, "A TPU slice, CHIP:AxB or CHIP:AxBxC: v5e:16x16, v5p:4x4x4 ...")
DEVICES = flags.DEFINE_integer(
    "devices", None, "The number of virtual CPU devices, in place of a topology.", lower_bound=1
)
CHIP = flags.DEFINE_string("chip", None, "With --devices: the chip whose speed and memory are assumed; default: v5e.")
ENCODER = flags.DEFINE_string("encoder_config", None, "The encoder's config.json, a path or JSON; else config.encoder.")
DECODER = flags.DEFINE_string("decoder_config", None, "The decoder's, likewise.")
DTYPE = flags.DEFINE_string(
    "dtype", None, "The dtype of both parts; default: config.dtype for the training step, float32 for the search."
)
PARTS = flags.DEFINE_list("parts", ["train", "decode"], "What to compile.")
SEARCH = flags.DEFINE_integer(
    "search",
    None,
    "Compare all meshes, in place of config.mesh, and compile the training steps of so many, the best by estimate.",
    lower_bound=1,
)
OUTPUT = flags.DEFINE_string("output", None, "A file for the figures as JSON.")


def side(given, config):
    """The content of a side's config.json, and its name in messages."""
    from seq2seq_jax.weights.files import local_directory, read_json

    if given is None and config is None:
        raise app.UsageError("which pair? give --config.encoder and --config.decoder, or --encoder_config and so on")
    if given is None:
        return read_json(local_directory(config, ["config.json"]) / "config.json"), config
    return (json.loads(given) if given.lstrip().startswith("{") else read_json(Path(given))), given


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all arguments are flags")
    if CONFIG.value is None or (TOPOLOGY.value is None) == (DEVICES.value is None):
        raise app.UsageError("give --config, and --topology or --devices; see the top of --help for a whole command")
    wrong = set(PARTS.value) - {"train", "decode"}
    if wrong or not PARTS.value:
        raise app.UsageError(f"--parts has {', '.join(sorted(wrong)) or 'nothing'}; give train, decode or both")
    if SEARCH.value is not None and PARTS.present and PARTS.value != ["train"]:
        raise app.UsageError(
            f"--search is of the training step alone, and --parts is {','.join(PARTS.value)}; give --parts=train"
        )
    if TOPOLOGY.value is not None and CHIP.value is not None:
        raise app.UsageError(f"--chip={CHIP.value} is for --devices; leave it out, {TOPOLOGY.value} says which chip")
    if DEVICES.value is not None:  # read when jax first looks for devices
        count = f"--xla_force_host_platform_device_count={DEVICES.value}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"

    from seq2seq_jax.config import TrainConfig, from_mapping
    from tools.dryrun import chips
    from tools.dryrun.mesh_search import search, search_json, search_table
    from tools.dryrun.report import report, table

    if TOPOLOGY.value is None:
        chip, devices = chips.chip_named(CHIP.value or "v5e"), chips.cpu_devices(DEVICES.value)
    else:
        chip, devices = chips.tpu_devices(TOPOLOGY.value)
    values = CONFIG.value.to_dict()
    encoder, values["encoder"] = side(ENCODER.value, values["encoder"])
    decoder, values["decoder"] = side(DECODER.value, values["decoder"])
    values["data"]["train"] = values["data"]["train"] or "(none)"
    values["dtype"] = DTYPE.value or values["dtype"]
    config = from_mapping(TrainConfig, values)
    common = (config, (encoder, decoder), devices, chip)
    if SEARCH.value is None:
        target = TOPOLOGY.value or f"{DEVICES.value} CPU devices"
        figures = report(*common, target, PARTS.value, DTYPE.value or "float32")
        print(table(figures))
    else:
        found = search(*common, SEARCH.value)
        figures = search_json(found, chip)
        print(search_table(found, chip))
    if OUTPUT.value is not None:
        Path(OUTPUT.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # Before anything imports jax, which then asks no metadata server for a TPU.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    app.run(main)
