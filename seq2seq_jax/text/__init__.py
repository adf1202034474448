"""Texts: files of them, the tokenizers of pretrained checkpoints, ids and back."""
