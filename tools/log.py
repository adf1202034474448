"""Progress messages of the tools."""

import sys


def log(text: str) -> None:
    """Prints to standard error, so that standard output has the tables alone."""
    print(text, file=sys.stderr, flush=True)
