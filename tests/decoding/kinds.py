"""Compiled functions of processors and automata."""

import jax


def jitted(function):
    """jax.jit which tells functions of different classes apart (decoding.loop.Rules says why it may not)."""
    compiled = jax.jit(lambda kinds, *arguments: function(*arguments), static_argnums=0)
    return lambda *arguments: compiled(hash(jax.tree.structure(arguments)), *arguments)
