"""The former place and name of `inference.text_windows.TextWindows`, for programs that import it from here."""

from seq2seq_jax.inference.text_windows import TextWindows as Lines

__all__ = ["Lines"]
