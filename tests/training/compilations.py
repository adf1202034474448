"""Counting compilations."""

import contextlib
import logging

import jax


class _Names(logging.Handler):
    def __init__(self, names):
        super().__init__()
        self.names, self.found = names, []

    def emit(self, record):
        # "Compiling jit(<name>) with global shapes and types ..."; a program from the persistent cache counts too.
        words = record.getMessage().split()
        if words[0] == "Compiling" and words[1].removeprefix("jit(").removesuffix(")") in self.names:
            self.found.append(words[1])


@contextlib.contextmanager
def compiled(*names):
    """A list of the programs that are made, while this is open, of functions of these names."""
    handler, logger = _Names(names), logging.getLogger("jax._src.interpreters.pxla")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
