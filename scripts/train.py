"""Fine-tunes a pair, or goes on with a run that was stopped.

scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.optimizer.learning_rate=3e-4]

--config.help lists every field of a config with its type, default and meaning, and with --config=FILE its value there.
Fields of warm_start and generation can be set too: --config.generation.num_beams=4. None unsets an optional field.
The same command again goes on from the last checkpoint in the workdir, on other devices too. SIGINT and SIGTERM stop
the run after its step, with a checkpoint.
"""

import sys

import command
import config_flag
import process_flags
from absl import app, flags

HELP = "--config.help"
CONFIG = config_flag.define()
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; to go on, the same again.")
STOP_AT = flags.DEFINE_integer("stop_at", None, "Stop after this step, with a checkpoint, as if interrupted.")
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(config_flag)
flags.adopt_module_key_flags(process_flags)


def main(argv: list[str]) -> int:
    command.check_no_arguments(argv)
    if SHOW_FIELDS:
        from seq2seq_jax.training.configs import describe

        print(describe(CONFIG.value))
        return 0
    for flag in (CONFIG, WORKDIR):
        if flag.value is None:
            raise app.UsageError(f"--{flag.name} is missing; see the top of --help for a whole command")

    from seq2seq_jax.models.cpu import keep_memory
    from seq2seq_jax.parallel import multihost
    from seq2seq_jax.training.configs import resolve
    from seq2seq_jax.training.loop import TrainingInterrupted, train

    config = resolve(CONFIG.value, config_flag.overridden())
    process_flags.start()
    keep_memory()
    try:
        train(config, WORKDIR.value, stop_at=STOP_AT.value)
    except TrainingInterrupted as interrupt:
        print(interrupt)
        return 0 if interrupt.signal is None else 128 + interrupt.signal
    if multihost.is_first():
        workdir = WORKDIR.value
        print(f'use it:     python scripts/generate.py --model={workdir} --text="..."')
        print(f"score it:   python scripts/evaluate.py --model={workdir} --data=FILE --output={workdir}/evaluation")
        print(f"look at it: tensorboard --logdir={workdir}/tensorboard")
    return 0


if __name__ == "__main__":
    SHOW_FIELDS = HELP in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != HELP]  # ml_collections reads it there
    command.run(main)
