"""What it may cost to keep a weight in a number format: rounding in plain ones, a step in block formats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

PLAIN_ROUNDING: Mapping[str, float] = {"f64": 2.0**-24, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
"""Plain format -> relative rounding."""

HALF: Mapping[str, tuple[int, int]] = {"f16": (10, -14), "bf16": (7, -126)}
"""16-bit format -> bits of its mantissa, and the exponent of its smallest normal value."""

STEPS: Mapping[str, int] = {
    "q4_0": 8,
    "q4_1": 15,
    "q5_0": 16,
    "q5_1": 31,
    "q8_0": 127,
    "q4_k": 15,
    "q5_k": 31,
    "q6_k": 32,
    "q3_k": 4,
    "q2_k": 3,
}
"""Quantised format -> steps of its grid over the range of a block (over half of it where symmetric)."""

ALLOWED_STEPS = 1.5
"""Steps that a value may be off: half a step of rounding, and a grid whose end and scale are rounded too."""

SUPER_BLOCK_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
"""Formats whose block scales are themselves quantised to 6 or 8 bit, over 256 values."""


def blocked(values: F64, size: int) -> F64:
    """Return values [rows, n] in blocks of ``size``, the last filled up with its last value."""
    missing = -values.shape[-1] % size
    padded = np.pad(values, ((0, 0), (0, missing)), mode="edge") if missing else values
    return padded.reshape(len(values), -1, size)


def cast_cost(values: F64, kind: str) -> F64:
    """Return how far each value may be off once cast to ``kind``: a step of it, nothing where it fits."""
    mantissa, smallest = HALF[kind]
    exponent = np.floor(np.log2(np.abs(values), where=values != 0, out=np.full_like(values, smallest)))
    step = 2.0 ** (np.maximum(exponent, smallest) - mantissa)
    return np.where(values % step == 0, 0.0, step)


def allowed_cost(values: F64, blocks: F64, kind: str) -> F64:
    """Return how far each block [rows, blocks, 32] of ``values`` [rows, n] may be off, kept as ``kind``."""
    largest = np.max(np.abs(blocks), axis=-1)
    if kind in PLAIN_ROUNDING:
        return np.asarray(largest * PLAIN_ROUNDING[kind])
    steps = STEPS.get(kind)
    if steps is None:
        return np.full_like(largest, np.inf)
    spread = np.maximum(np.max(blocks, axis=-1) - np.minimum(np.min(blocks, axis=-1), 0), largest)
    allowed = spread / steps * ALLOWED_STEPS
    if kind in SUPER_BLOCK_TYPES:  # the scale of a quiet block is rounded on the grid of the loudest
        loudest = np.max(np.abs(blocked(values, 256)), axis=-1)
        allowed += np.repeat(loudest, 8, axis=-1)[:, : allowed.shape[-1]] / 32
    return np.asarray(allowed)
