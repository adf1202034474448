"""Measures training, decoding, loading and batching, beside torch and other systems where they can do the same."""
