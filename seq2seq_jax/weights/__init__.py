"""Torch checkpoints: their files, the names of their tensors, parameters from them and back, and the report."""
