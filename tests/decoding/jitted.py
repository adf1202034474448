"""Compiled functions of processors and automata."""

import jax


def jitted(function):
    """jax.jit that tells pytrees of different classes apart, see `SearchParams.structure_hash`."""
    compiled = jax.jit(lambda structure, *arguments: function(*arguments), static_argnums=0)
    return lambda *arguments: compiled(hash(jax.tree.structure(arguments)), *arguments)
