"""Warm-started encoder-decoder models in JAX: PyTorch checkpoints in, fine-tuned pairs out."""
