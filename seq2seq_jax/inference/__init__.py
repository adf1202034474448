"""Decoding of whole corpora."""
