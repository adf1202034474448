"""Decodes and evaluates corpora."""
