"""Fine-tunes a pair, or goes on with a run that was stopped.

scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.optimizer.learning_rate=3e-4]

--config.help lists every field of a config with its type, default and meaning, and with --config=FILE its value there.
The same command again goes on from the last checkpoint in the workdir, on other devices too.
"""

import signal
import sys

import process_flags
from absl import app, flags, logging
from ml_collections import config_flags

from seq2seq_jax.config import TrainConfig, from_mapping, parse_settings
from seq2seq_jax.models.cpu import keep_memory
from seq2seq_jax.parallel import multihost
from seq2seq_jax.training.configs import OPEN_SECTIONS, describe
from seq2seq_jax.training.loop import Stopped, train

HELP = "--config.help"
CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(), and overrides of its fields.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; to go on, the same again.")
STOP_AT = flags.DEFINE_integer("stop_at", None, "Stop after this step, with a checkpoint, as if interrupted.")
SET = flags.DEFINE_multi_string(
    "set", [], "An open section's new key: warm_start.<name>=value, generation.<name>=value."
)
flags.adopt_module_key_flags(process_flags)


def main(argv):
    logging.set_verbosity(logging.ERROR)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all arguments are flags")
    if SHOW_FIELDS:
        print(describe(CONFIG.value))
        return
    for flag in (CONFIG, WORKDIR):
        if flag.value is None:
            raise app.UsageError(f"--{flag.name} is missing; see the top of --help for a whole command")
    process_flags.start()
    keep_memory()
    config = CONFIG.value.to_dict()
    for path, value in parse_settings(SET.value).items():
        section, _, name = path.partition(".")
        if section not in OPEN_SECTIONS or not name:
            raise app.UsageError(
                f"--set={path}=... is for the sections {', '.join(OPEN_SECTIONS)}; else --config.{path}"
            )
        config[section][name] = value
    try:
        train(from_mapping(TrainConfig, config), WORKDIR.value, stop_at=STOP_AT.value)
    except Stopped as stopped:
        print(stopped)
        sys.exit(0 if stopped.step == STOP_AT.value else 128 + signal.SIGTERM)
    if multihost.is_first():
        workdir = WORKDIR.value
        print(f'use it:     python scripts/generate.py --model={workdir} --text="..."')
        print(f"score it:   python scripts/evaluate.py --model={workdir} --data=FILE --output={workdir}/evaluation")
        print(f"look at it: tensorboard --logdir={workdir}/tensorboard")


if __name__ == "__main__":
    SHOW_FIELDS = HELP in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != HELP]  # ml_collections reads it there
    app.run(main)
