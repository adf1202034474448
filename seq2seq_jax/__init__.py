"""Warm-started encoder-decoder models in JAX."""
