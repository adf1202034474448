"""Fine-tunes a pair.

scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.optimizer.learning_rate=3e-4]
"""

from absl import app, flags, logging
from ml_collections import config_flags

from seq2seq_jax.config import TrainConfig, from_mapping
from seq2seq_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(), and overrides of its fields.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all arguments are flags")
    export = train(from_mapping(TrainConfig, CONFIG.value.to_dict()), WORKDIR.value)
    print(f'use it: python scripts/generate.py --model={export} --text="..."')


if __name__ == "__main__":
    app.run(main)
