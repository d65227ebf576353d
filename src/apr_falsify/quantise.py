"""What 8-bit and 4-bit blocks keep of a vector of activations: quantised and dequantised, to the bit.

Each function takes f32 values [..., n], quantises the last axis in blocks and returns what the blocks stand
for, as f64 (the products of an f16 or f32 scale with a small integer are exact there). The block
formats are those of ggml (``ggml-common.h``, ``ggml-quants.c``); the block of 256 with a plain
``max / 127`` scale is the one that ``apr`` 0.72.3 uses for activations, as measured on its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]

BLOCK = 32
SUPER_BLOCK = 256


def blocks_of(values: Values, size: int) -> F32:
    """Return ``values`` as f32 [..., blocks, size], the last block filled up with zeros."""
    flat = values.astype(np.float32, copy=False)
    missing = -flat.shape[-1] % size
    if missing:
        flat = np.concatenate((flat, np.zeros((*flat.shape[:-1], missing), np.float32)), axis=-1)
    return flat.reshape(*flat.shape[:-1], -1, size)


def _unblocked(blocks: F64, length: int) -> F64:
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def _ratio(numerator: F32, divisor: F32) -> F32:
    """Return numerator / divisor in f32, 0 where the divisor is 0."""
    result = np.zeros(np.broadcast_shapes(numerator.shape, divisor.shape), np.float32)
    np.divide(numerator, divisor, out=result, where=divisor != 0)
    return result


def _ties_away(values: F32) -> F32:
    whole = np.trunc(values)
    # The fraction is exact, where adding a half first would round 0.49999997 up.
    return whole + np.copysign((np.abs(values - whole) >= 0.5).astype(np.float32), values)


def q8_256(values: Values) -> F64:
    """8 bit in blocks of 256: scale max|x| / 127 in f32, ``round(x / scale)``, ties away from zero.

    Rust's ``f32::round`` takes ties so; on real runs of apr with a tie ``rint`` leaves 3e-4, this 2e-7.
    """
    blocks = blocks_of(values, SUPER_BLOCK)
    scale = (np.max(np.abs(blocks), axis=-1, keepdims=True) / np.float32(127)).astype(np.float32)
    return _unblocked(_ties_away(_ratio(blocks, scale)).astype(np.float64) * scale, values.shape[-1])


def q8_k(values: Values) -> F64:
    """ggml's ``q8_K``: blocks of 256, scale from the signed value of largest magnitude, f32."""
    blocks = blocks_of(values, SUPER_BLOCK)
    largest = _signed_largest(blocks)
    inverse = _ratio(np.full_like(largest, -127), largest)
    quants = np.minimum(np.rint(blocks * inverse), 127)
    scale = _ratio(np.ones_like(inverse), inverse)
    return _unblocked(quants.astype(np.float64) * scale, values.shape[-1])


def _signed_largest(blocks: F32) -> F32:
    at = np.argmax(np.abs(blocks), axis=-1, keepdims=True)
    return np.take_along_axis(blocks, at, axis=-1)


def _q8_32(values: Values) -> tuple[F32, F32]:
    """Return integers [..., blocks, 32] and f32 scales [..., blocks, 1] of 8-bit blocks of 32."""
    blocks = blocks_of(values, BLOCK)
    largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
    inverse = _ratio(np.full_like(largest, 127), largest)
    return np.rint(blocks * inverse), (largest / np.float32(127)).astype(np.float32)


def q8_0(values: Values) -> F64:
    """ggml's ``q8_0``: blocks of 32, ``rint(x * (127 / max))`` in f32, scale max / 127 kept as f16."""
    quants, scale = _q8_32(values)
    return _unblocked(
        quants.astype(np.float64) * scale.astype(np.float16).astype(np.float64), values.shape[-1]
    )


def q8_1_block_sums(values: Values) -> F64:
    """Return what ggml's ``q8_1`` keeps for each block's sum beyond its own values: [..., blocks].

    ``q8_1`` is ``q8_0`` plus s = f16(scale * sum of the integers), with which a 4- or 5-bit
    weight's minimum is multiplied. Returned is s minus the sum of the dequantised values.
    """
    quants, scale = _q8_32(values)
    total = np.sum(quants, axis=-1)
    kept = (total * scale[..., 0]).astype(np.float16).astype(np.float64)
    extra: F64 = kept - total.astype(np.float64) * scale[..., 0].astype(np.float16).astype(np.float64)
    return extra


def q4_0(values: Values) -> F64:
    """ggml's ``q4_0``: blocks of 32, scale (signed largest) / -8 kept as f16, integers 0..15 minus 8."""
    blocks = blocks_of(values, BLOCK)
    scale = (_signed_largest(blocks) / np.float32(-8)).astype(np.float32)
    inverse = _ratio(np.ones_like(scale), scale)
    quants = np.minimum(15, np.trunc(blocks * inverse + np.float32(8.5)))
    kept = scale.astype(np.float16).astype(np.float64)
    return _unblocked((quants.astype(np.float64) - 8) * kept, values.shape[-1])


def _from_minimum(values: Values, largest: int) -> tuple[F64, F64]:
    """Return what blocks of a scale and a minimum, both f16, stand for, and the minima [..., blocks]."""
    blocks = blocks_of(values, BLOCK)
    low = np.min(blocks, axis=-1, keepdims=True)
    scale = ((np.max(blocks, axis=-1, keepdims=True) - low) / np.float32(largest)).astype(np.float32)
    inverse = _ratio(np.ones_like(scale), scale)
    quants = np.minimum(largest, np.trunc((blocks - low) * inverse + np.float32(0.5))).astype(np.float64)
    minimum = low.astype(np.float16).astype(np.float64)
    kept = quants * scale.astype(np.float16).astype(np.float64) + minimum
    return _unblocked(kept, values.shape[-1]), minimum[..., 0]


def q4_1(values: Values) -> F64:
    """ggml's ``q4_1``: blocks of 32, scale (max - min) / 15 and minimum kept as f16, integers 0..15."""
    return _from_minimum(values, 15)[0]


def q5_1(values: Values) -> F64:
    """ggml's ``q5_1``: as ``q4_1`` with integers 0..31."""
    return _from_minimum(values, 31)[0]


def minima_4_bit(values: Values) -> F64:
    """Return the minima [..., blocks] that :func:`q4_1` keeps."""
    return _from_minimum(values, 15)[1]


def minima_5_bit(values: Values) -> F64:
    """Return the minima [..., blocks] that :func:`q5_1` keeps."""
    return _from_minimum(values, 31)[1]


def q5_0(values: Values) -> F64:
    """ggml's ``q5_0``: blocks of 32, scale (signed largest) / -16 kept as f16, integers 0..31 minus 16."""
    blocks = blocks_of(values, BLOCK)
    scale = (_signed_largest(blocks) / np.float32(-16)).astype(np.float32)
    inverse = _ratio(np.ones_like(scale), scale)
    quants = np.minimum(31, np.trunc(blocks * inverse + np.float32(16.5))).astype(np.float64)
    return _unblocked((quants - 16) * scale.astype(np.float16).astype(np.float64), values.shape[-1])


_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""``kvalues_iq4nl`` of ggml-common.h."""


def iq4_nl(values: Values) -> F64:
    """ggml's ``iq4_nl``: blocks of 32, the nearest of 16 uneven steps, a scale refitted to them, as f16."""
    blocks = blocks_of(values, BLOCK)
    steps = np.array(_IQ4_NL, np.float32)
    inverse = _ratio(np.full((*blocks.shape[:-1], 1), -127, np.float32), _signed_largest(blocks))
    with np.errstate(invalid="ignore"):
        nearest = np.searchsorted((steps[1:] + steps[:-1]) / 2, blocks * inverse, side="right")
    chosen = steps[nearest]
    weights = blocks * blocks
    fitted, energy = (
        np.cumsum(weights * chosen * other, axis=-1, dtype=np.float32)[..., -1:] for other in (blocks, chosen)
    )
    scale = _ratio(fitted, energy).astype(np.float16).astype(np.float64)
    return _unblocked(chosen * scale, values.shape[-1])


ROTATED_BLOCK = 64
"""How many values of V llama.cpp turns together, whatever the size of a head (its pull request 21038)."""


TURN_ERROR = 2.0**-22
"""How far turned values may be from those turned here, in root mean squares of what was turned: four f32
roundings cover sums of up to 256 terms."""


def edges(kept: Callable[[Values], F64], values: Values, size: int) -> F64:
    """Return how far ``kept(values)`` may be off, since each value was summed of ``size`` terms in f32.

    Nearly everywhere that is next to nothing; a value on the edge between two steps may fall to either side,
    and a scale on the edge between two f16 numbers moves its whole block.
    """
    parts = values.reshape(*values.shape[:-1], -1, size)
    error = TURN_ERROR * np.sqrt(np.mean(np.square(parts, dtype=np.float64), axis=-1, keepdims=True))
    error = error + np.spacing(np.abs(parts).astype(np.float32))  # to which a moved value is rounded itself
    base = kept(values)
    # A value beside the one that sets its block's scale would move with that, and not off its edge.
    shifts = (error, error * _between(parts), parts * TURN_ERROR)
    found: F64 = np.zeros_like(base)
    for shift in (signed for one in shifts for signed in (one, -one)):
        moved = kept((parts + shift).astype(np.float32).reshape(values.shape))
        np.maximum(found, np.abs(moved - base), out=found)
    return found


def _between(parts: Values) -> npt.NDArray[np.bool_]:
    """Return which values are neither the least nor the largest of their block of 32."""
    blocks = parts.reshape(*parts.shape[:-1], -1, BLOCK)
    least, largest = (f(blocks, axis=-1, keepdims=True) for f in (np.min, np.max))
    return np.asarray((blocks != least) & (blocks != largest)).reshape(parts.shape)


def turned_edges(kept: Callable[[Values], F64]) -> Callable[[Values], F64]:
    """Return how far :func:`turned_back` of ``kept`` may be off: an edge is spread over its block."""

    def off(values: Values) -> F64:
        turned = values.reshape(*values.shape[:-1], -1, ROTATED_BLOCK) @ hadamard(ROTATED_BLOCK)
        found = edges(kept, turned.astype(np.float32).reshape(values.shape), ROTATED_BLOCK)
        blocks = found.reshape(turned.shape)
        spread = np.sqrt(np.mean(np.square(blocks), axis=-1, keepdims=True))
        return np.broadcast_to(spread, blocks.shape).reshape(values.shape)

    return off


def turned_back(kept: Callable[[Values], F64]) -> Callable[[Values], F64]:
    """Return what ``kept`` leaves of values that a Hadamard matrix turned, and turned back afterwards."""

    def turned(values: Values) -> F64:
        matrix = hadamard(ROTATED_BLOCK)
        parts = values.reshape(*values.shape[:-1], -1, ROTATED_BLOCK)
        held = kept((parts @ matrix).astype(np.float32).reshape(values.shape))
        back: F64 = held.reshape(parts.shape) @ matrix
        return back.reshape(values.shape)

    return turned


def hadamard(size: int) -> F64:
    """Return the normalised Hadamard matrix of ``size`` (a power of two), Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    normalised: F64 = matrix / np.sqrt(size)
    return normalised
