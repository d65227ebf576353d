"""What blocks of few bits keep of a vector of activations: quantised and dequantised, to the bit.

Each format takes f32 values [..., n], quantises the last axis in blocks and returns what the blocks stand
for, as f64 (the products of an f16 or f32 scale with a small integer are exact there). Its docstring names
the f32 operations in their order, since another order moves values that lie at the edge between two integers.
The order was found by measuring the programs: ``apr`` 0.72.3 on checkpoints whose weights each pick one
channel, llama.cpp's CPU back end by calling its quantisers through its library.

:data:`STEPS` says of each value how near to such an edge it lies, and what it is beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]

BLOCK = 32
SUPER_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Where values [..., n] lie between the integers that a format rounds them to.

    Attributes:
        quants: the integers, f64 [..., n]; ``quants * scale`` is what is kept (and the block's minimum more,
            in a format that has one).
        scale: what one step is worth in what is kept, f64 [..., n].
        fraction: the distance of each value to the nearest edge between two integers, f64 [..., n], in steps;
            a value that is exactly an integer has 0.5.
        flip: what ``quants`` would change by, were the value beyond that edge, f64 [..., n].

    """

    quants: F64
    scale: F64
    fraction: F64
    flip: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """Blocks of values [..., blocks, size] and what became of them.

    Attributes:
        values: the values.
        quants: their integers.
        scale: what one integer is worth once stored [..., blocks, 1].
        width: the signed distance in ``values`` that one integer covers, before it was stored.
        ends: the least and the largest integer.
        origin: the value that integer 0 stands for [..., blocks, 1], as it was computed with.
        minimum: the same as it was stored.

    """

    values: F32
    quants: F32
    scale: F64
    width: F64
    ends: tuple[int, int]
    origin: F64 | float = 0.0
    minimum: F64 | float = 0.0


_Format = Callable[[Values], _Blocks]


def blocks_of(values: Values, size: int) -> F32:
    """Return ``values`` as f32 [..., blocks, size], the last block filled up with zeros."""
    flat = values.astype(np.float32, copy=False)
    missing = -flat.shape[-1] % size
    if missing:
        flat = np.concatenate((flat, np.zeros((*flat.shape[:-1], missing), np.float32)), axis=-1)
    return flat.reshape(*flat.shape[:-1], -1, size)


def _unblocked(blocks: F64, length: int) -> F64:
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def _kept(form: _Format, values: Values) -> F64:
    with np.errstate(invalid="ignore", over="ignore"):  # a scale beyond f16 is infinite, as it is there
        blocks = form(values)
        return _unblocked(blocks.quants.astype(np.float64) * blocks.scale + blocks.minimum, values.shape[-1])


def _steps(form: _Format, values: Values) -> Steps:
    with np.errstate(invalid="ignore", over="ignore"):
        blocks = form(values)
        least, largest = blocks.ends
        quants = blocks.quants.astype(np.float64)
        exact = np.zeros(quants.shape)  # a block of width 0 holds zeros alone
        np.divide(blocks.values - blocks.origin, blocks.width, out=exact, where=blocks.width != 0)
        edge = np.clip(np.floor(exact), least, largest - 1) + 0.5
    parts = {
        "quants": quants,
        "scale": np.broadcast_to(blocks.scale, quants.shape),
        "fraction": np.abs(exact - edge),
        "flip": np.where(quants > edge, -1.0, 1.0),
    }
    return Steps(**{name: _unblocked(part, values.shape[-1]) for name, part in parts.items()})


def _ratio(numerator: F32, divisor: F32) -> F32:
    """Return numerator / divisor in f32; 0 where the divisor is 0 and where the ratio overflows.

    Where the reciprocal of a scale overflows, the scale itself is stored as 0 in every format that has one in
    f16 or inverts it back, so that the integers do not matter.
    """
    result = np.zeros(np.broadcast_shapes(numerator.shape, divisor.shape), np.float32)
    with np.errstate(over="ignore"):
        np.divide(numerator, divisor, out=result, where=divisor != 0)
    return np.where(np.isinf(result), np.float32(0), result)


def _ties_away(values: F32) -> F32:
    whole = np.trunc(values)
    # The fraction is exact, where adding a half first would round 0.49999997 up.
    return whole + np.copysign((np.abs(values - whole) >= 0.5).astype(np.float32), values)


_APR_LEAST = np.float32(1e-10)
"""Up to this a block's maximum counts as none for apr: its scale is 1 / 127 then, and its integers are 0."""


def _q8_256(values: Values) -> _Blocks:
    blocks = blocks_of(values, SUPER_BLOCK)
    largest = np.fmax.reduce(np.abs(blocks), axis=-1, keepdims=True, initial=np.float32(0))
    scale = np.where(largest > _APR_LEAST, largest, np.float32(1)).astype(np.float32) / np.float32(127)
    quants = _ties_away(blocks * (np.float32(1) / scale))
    quants[np.isnan(quants)] = 0
    wide = scale.astype(np.float64)
    return _Blocks(values=blocks, quants=quants, scale=wide, width=wide, ends=(-127, 127))


def q8_256(values: Values) -> F64:
    """8 bit in blocks of 256, as ``apr`` 0.72.3 multiplies with Q4_K weights.

    In f32: scale = max|x| / 127, inverse = 1 / scale, integer = round(x * inverse), ties away from zero;
    value = integer * scale. Where max|x| is 1e-10 or less the scale is 1 / 127 (all integers are 0). NaN does
    not count for the maximum, and becomes 0. Measured on 199,680 values engineered to lie on edges, of which
    none differs: ``x * (127 / max)`` is wrong for 15,004 of them, ``x / scale`` for 24,049, ties to even for
    39,636, adding a half and truncating for 148.
    """
    return _kept(_q8_256, values)


def _q8_k(values: Values) -> _Blocks:
    blocks = blocks_of(values, SUPER_BLOCK)
    largest = _signed_largest(blocks)
    inverse = _ratio(np.full_like(largest, -127), largest)
    scale = _ratio(np.ones_like(inverse), inverse).astype(np.float64)
    return _Blocks(
        values=blocks, quants=np.rint(blocks * inverse), scale=scale, width=scale, ends=(-127, 127)
    )


def q8_k(values: Values) -> F64:
    """ggml's ``q8_K``: blocks of 256, scale from the signed value of largest magnitude, kept in f32."""
    return _kept(_q8_k, values)


def _signed_largest(blocks: F32) -> F32:
    at = np.argmax(np.abs(blocks), axis=-1, keepdims=True)
    return np.take_along_axis(blocks, at, axis=-1)


def _q8_32(values: Values) -> tuple[F32, F32, F32]:
    """Return values and integers [..., blocks, 32] and f32 scales [..., blocks, 1] of 8-bit blocks of 32."""
    blocks = blocks_of(values, BLOCK)
    largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
    inverse = _ratio(np.full_like(largest, 127), largest)
    return blocks, np.rint(blocks * inverse), (largest / np.float32(127)).astype(np.float32)


def _q8_0(values: Values) -> _Blocks:
    blocks, quants, scale = _q8_32(values)
    return _Blocks(
        values=blocks, quants=quants, scale=_f16(scale), width=scale.astype(np.float64), ends=(-127, 127)
    )


def _f16(values: F32) -> F64:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float64)


def q8_0(values: Values) -> F64:
    """ggml's ``q8_0``: blocks of 32, ``rint(x * (127 / max))`` in f32, scale max / 127 kept as f16."""
    return _kept(_q8_0, values)


def q8_1_block_sums(values: Values) -> F64:
    """Return what ggml's ``q8_1`` keeps for each block's sum beyond its own values: [..., blocks].

    ``q8_1`` is ``q8_0`` plus s = f16(scale * sum of the integers), with which a 4- or 5-bit
    weight's minimum is multiplied. Returned is s minus the sum of the dequantised values.
    """
    _, quants, scale = _q8_32(values)
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


STEPS: Mapping[Callable[[Values], F64], Callable[[Values], Steps]] = {
    q8_256: partial(_steps, _q8_256),
    q8_k: partial(_steps, _q8_k),
    q8_0: partial(_steps, _q8_0),
}
"""What is left of values in blocks -> where the values lie between its steps."""


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
