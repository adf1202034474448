"""Checks of stored tensors: a parameter has a floating type, is not quantised, and is finite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
# What bitsandbytes, GPTQ and AWQ, compressed-tensors, block-wise float8 and torchao add beside a weight.
QUANTISED = re.compile(
    r".*\.(absmax|quant_map|nested_absmax|quant_state(\..*)?|SCB|weight_format|qweight|qzeros|g_idx|weight_packed"
    r"|weight_scale(_inv)?|weight_zero_point|tensor_impl\..*)"
)
PART = 2**20  # numbers checked at a time, so that no array of a tensor's size is made
# All exponent bits are set in infinities and NaN alone.
EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}


def unfit_dtype(file: Path, name: str, dtype: Any) -> ValueError:
    """The error for a parameter that is not stored in a plain floating type."""
    return ValueError(
        f"{file}: {name} is stored as {dtype}, and a parameter is read from float16, bfloat16, float32 or float64; if"
        " it is quantised, dequantise it where it was made, else convert it there (tensor.float()), and save again"
    )


def check_not_quantised(names: Iterable[str], config: Mapping[str, Any], directory: Path) -> None:
    """Raises ValueError for weights that are of use only with the scales beside them."""
    found = next((name for name in names if QUANTISED.fullmatch(name)), None)
    if found is not None:
        method = (config.get("quantization_config") or {}).get("quant_method")
        raise ValueError(
            f"{directory}: the weights are quantised{f' by {method}' if method else ''} (they come with {found!r}),"
            " which is not read; take the checkpoint that they were made from, or dequantise in torch"
            " (model.dequantize()) and save again"
        )


def count_not_finite(tensor: np.ndarray) -> int:
    """How many numbers are NaN or infinite, in one pass if none is."""
    bits = EXPONENTS.get(tensor.dtype)
    if bits is not None:
        words = tensor.view(np.uint16).reshape(-1)
        parts = (words[i : i + PART] for i in range(0, words.size, PART))
        return sum(int(np.count_nonzero((part & bits) == bits)) for part in parts)
    # A sum with NaN or infinities is not finite; a sum may also overflow, so that its numbers are counted.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(tensor.sum()):
            return 0
    return int(np.count_nonzero(~np.isfinite(tensor)))
