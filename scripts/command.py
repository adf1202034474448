"""What the scripts have in common: parsing flags, one line for a user's mistake, exit codes.

It imports the standard library and absl alone, and scripts import what is heavy after `run` has parsed the flags, so
that --help answers at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS
flags.DEFINE_bool("debug", False, "Show an error's traceback.")

# Errors that say what the user gave wrongly; others are faults of the program, and are shown with their traceback.
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags, calls `main` with the arguments that are none, and exits.

    The exit code is what `main` returns (None: 0), 1 for an error, 2 for wrong flags, 130 and 143 after SIGINT and
    SIGTERM. An error of `MISTAKES` is one line on stderr, with --debug a traceback.
    """
    program = Path(sys.argv[0]).name
    logging.set_verbosity(logging.ERROR)
    app.define_help_flags()
    if not {"--help", "-help", "-h"}.isdisjoint(sys.argv):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    if not sys.stderr.isatty():  # datasets and huggingface_hub read these when they are imported
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(_parse_flags()))
    except (flags.Error, app.UsageError) as error:
        code, text = 2, f"{_text(error)} ({program} --help lists the flags)"
    except KeyboardInterrupt:
        code, text = 128 + signal.SIGINT, "interrupted"
    except MISTAKES as error:
        if "--debug" in sys.argv:
            raise
        code, text = 1, f"{_text(error)} (--debug shows the traceback)"
    print(f"{program}: {text}", file=sys.stderr)
    sys.exit(code)


def check_no_arguments(argv: list[str], remedy: str = "all arguments are flags") -> None:
    """Raises UsageError if there is an argument that is no flag."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; {remedy}")


def _parse_flags() -> list[str]:
    try:
        return FLAGS(sys.argv)
    except (AttributeError, KeyError, ValueError) as error:  # ml_collections raises these for unknown fields
        raise app.UsageError(_text(error)) from error


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    sys.exit(128 + number)


def _text(error: Exception) -> str:
    """The message of an error on one line, without the quotes that KeyError adds."""
    text = str(error.args[0]) if isinstance(error, KeyError | AttributeError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
