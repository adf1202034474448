"""The loss of a run, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from seq2seq_jax.config.validation import check


@dataclass(frozen=True)
class LossConfig:
    """How the loss of a target token is computed.

    Attributes:
      label_smoothing: this much of the target is spread evenly over the vocabulary (torch's
        CrossEntropyLoss(label_smoothing=...)).
      z_loss: factor on the squared log of the softmax's normaliser, which is added (PaLM, section 5).
      chunk: target tokens whose logits exist at a time; None: all.
      vocab_chunk: with chunk, how many logits of each of these tokens exist at a time; None: all.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int | None = None
    vocab_chunk: int | None = None

    def __post_init__(self):
        smoothing = self.label_smoothing
        check(0 <= smoothing < 1, f"label_smoothing is {smoothing!r}; give a number from 0 to below 1")
        check(self.z_loss >= 0, f"z_loss is {self.z_loss!r}; give 0 or a number above it, such as 1e-4")
        for name in ("chunk", "vocab_chunk"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} is {value!r}; give a whole number from 1 up")
        check(
            self.vocab_chunk is None or self.chunk is not None,
            f"vocab_chunk is {self.vocab_chunk}, and chunk is not given; give both",
        )
