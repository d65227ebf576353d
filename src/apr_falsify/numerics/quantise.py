"""What blocks of few bits keep of a vector of activations: quantised and dequantised, to the bit.

Each format takes f32 values [..., n], quantises the last axis in blocks and returns what the blocks stand
for, as f64 (the products of an f16 or f32 scale with a small integer are exact there). Its docstring names
the f32 operations in their order, since another order moves values that lie at the edge between two integers.
The order was found by measuring the programs: ``apr`` 0.72.3 on checkpoints whose weights each pick one
channel, llama.cpp's CPU back end (0.3.36 of llama-cpp-python, AVX2) by calling its quantisers through its
library; ``benchmarks/bench_quantise.py`` does both again.

:data:`STEPS` says of each value how near to such an edge it lies, and what it is beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.numerics.arithmetic import round_bf16, round_f16
from apr_falsify.numerics.blocks import Blocks, Steps, decoded, rounding_steps, steps_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]

BLOCK = 32
SUPER_BLOCK = 256

_INT8 = range(-127, 128)


def blocks_of(values: Values, size: int) -> F32:
    """Return ``values`` as f32 [..., blocks, size], the last block filled up with zeros."""
    flat = values.astype(np.float32, copy=False)
    missing = -flat.shape[-1] % size
    if missing:
        flat = np.concatenate((flat, np.zeros((*flat.shape[:-1], missing), np.float32)), axis=-1)
    return flat.reshape(*flat.shape[:-1], -1, size)


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


def _q8_256(values: Values) -> Blocks:
    blocks = blocks_of(values, SUPER_BLOCK)
    largest = np.fmax.reduce(np.abs(blocks), axis=-1, keepdims=True, initial=np.float32(0))
    scale = np.where(largest > _APR_LEAST, largest, np.float32(1)).astype(np.float32) / np.float32(127)
    quants = _ties_away(blocks * (np.float32(1) / scale))
    quants[np.isnan(quants)] = 0
    wide = scale.astype(np.float64)
    return Blocks(values=blocks, quants=quants, scale=wide, width=wide, levels=_INT8)


def q8_256(values: Values) -> F64:
    """8 bit in blocks of 256, as ``apr`` 0.72.3 multiplies with Q4_K weights.

    In f32: scale = max|x| / 127, inverse = 1 / scale, integer = round(x * inverse), ties away from zero;
    value = integer * scale. Where max|x| is 1e-10 or less the scale is 1 / 127 (all integers are 0). NaN does
    not count for the maximum, and becomes 0. Measured on 1,870,848 values, many of them on edges, of which
    none differs (``benchmarks/bench_quantise.py``): ``x / scale`` is wrong for 6,419 of them, x * (127 / max)
    for 5,068, ties to even for 13,854, adding a half and cutting off for 96. The program's public source has
    one loop for it and none with SIMD, so that processors differ in the order of sums only.
    """
    return decoded(_q8_256, values)


def _q8_k(values: Values) -> Blocks:
    blocks = blocks_of(values, SUPER_BLOCK)
    largest = _signed_largest(blocks)
    inverse = _ratio(np.full_like(largest, -127), largest)
    scale = _ratio(np.ones_like(inverse), inverse).astype(np.float64)
    return Blocks(values=blocks, quants=np.rint(blocks * inverse), scale=scale, width=scale, levels=_INT8)


def q8_k(values: Values) -> F64:
    """ggml's ``q8_K``: blocks of 256, scale from the signed value of largest magnitude, stored in f32."""
    return decoded(_q8_k, values)


def _signed_largest(blocks: F32) -> F32:
    at = np.argmax(np.abs(blocks), axis=-1, keepdims=True)
    return np.take_along_axis(blocks, at, axis=-1)


def _q8_32(values: Values) -> tuple[F32, F32, F32]:
    """Return values and integers [..., blocks, 32] and f32 scales [..., blocks, 1] of 8-bit blocks of 32."""
    blocks = blocks_of(values, BLOCK)
    largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
    inverse = _ratio(np.full_like(largest, 127), largest)
    return blocks, np.rint(blocks * inverse), (largest / np.float32(127)).astype(np.float32)


def _q8_0(values: Values) -> Blocks:
    blocks, quants, scale = _q8_32(values)
    return Blocks(
        values=blocks, quants=quants, scale=_f16(scale), width=scale.astype(np.float64), levels=_INT8
    )


def _f16(values: F32) -> F64:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float64)


def q8_0(values: Values) -> F64:
    """ggml's ``q8_0``: blocks of 32, ``rint(x * (127 / max))`` in f32, scale max / 127 stored as f16."""
    return decoded(_q8_0, values)


def q8_1_block_sums(values: Values) -> F64:
    """Return what ggml's ``q8_1`` keeps for each block's sum beyond its own values: [..., blocks].

    ``q8_1`` is ``q8_0`` plus s = f16(scale * sum of the integers), the product and its scale in f32, with
    which a 4- or 5-bit weight's minimum is multiplied. Returned is s minus the sum of the dequantised values.
    """
    _, quants, scale = _q8_32(values)
    total = np.sum(quants, axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        extra: F64 = _f16(total * scale[..., 0]) - total.astype(np.float64) * _f16(scale[..., 0])
    return extra


def _from_largest(values: Values, half: int) -> Blocks:
    """Quantise to integers 0..2 half - 1, less ``half``, with a scale of (signed largest) / -half."""
    blocks = blocks_of(values, BLOCK)
    scale = _signed_largest(blocks) / np.float32(-half)
    shifted = blocks * _ratio(np.ones_like(scale), scale) + np.float32(half + 0.5)
    return Blocks(
        values=blocks,
        quants=np.minimum(np.float32(2 * half - 1), np.trunc(shifted)) - np.float32(half),
        scale=_f16(scale),
        width=scale.astype(np.float64),
        levels=range(-half, half),
    )


_q4_0, _q5_0 = partial(_from_largest, half=8), partial(_from_largest, half=16)


def q4_0(values: Values) -> F64:
    """ggml's ``q4_0``: blocks of 32, ``trunc(x * (1 / d) + 8.5)`` in f32, d = (signed largest) / -8.

    The integers are at most 15, then 8 less. The first of equally large values gives the sign of d, which is
    stored in f16.
    """
    return decoded(_q4_0, values)


def q5_0(values: Values) -> F64:
    """ggml's ``q5_0``: blocks of 32, as ``q4_0`` with d = (signed largest) / -16, integers 0..31 minus 16."""
    return decoded(_q5_0, values)


def _from_minimum(values: Values, largest: int) -> Blocks:
    """Quantise to integers 0..largest above the least value, with a scale of (max - min) / largest."""
    blocks = blocks_of(values, BLOCK)
    low = np.min(blocks, axis=-1, keepdims=True)
    scale = (np.max(blocks, axis=-1, keepdims=True) - low) / np.float32(largest)
    shifted = (blocks - low) * _ratio(np.ones_like(scale), scale) + np.float32(0.5)
    return Blocks(
        values=blocks,
        quants=np.minimum(np.float32(largest), np.trunc(shifted)),
        scale=_f16(scale),
        width=scale.astype(np.float64),
        levels=range(largest + 1),
        origin=low.astype(np.float64),
        minimum=_f16(low),
    )


_q4_1, _q5_1 = partial(_from_minimum, largest=15), partial(_from_minimum, largest=31)


def q4_1(values: Values) -> F64:
    """ggml's ``q4_1``: blocks of 32, ``trunc((x - min) * (1 / d) + 0.5)`` in f32, d = (max - min) / 15.

    Both d and the minimum are stored in f16, after the integers were taken with their f32 values.
    """
    return decoded(_q4_1, values)


def q5_1(values: Values) -> F64:
    """ggml's ``q5_1``: as ``q4_1`` with d = (max - min) / 31."""
    return decoded(_q5_1, values)


def minima(values: Values) -> F64:
    """Return the minima [..., blocks] that ``q4_1`` and ``q5_1`` store, in f16."""
    return _f16(np.min(blocks_of(values, BLOCK), axis=-1))


_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""``kvalues_iq4nl`` of ggml-common.h."""

_IQ4_LEAST = np.float32(1e-15)
"""Below this a block's maximum counts as none: ``GROUP_MAX_EPS`` of ggml-quants.c."""


def _iq4_nl(values: Values) -> Blocks:
    blocks = blocks_of(values, BLOCK)
    table = np.array(_IQ4_NL, np.float32)
    width = _signed_largest(blocks) / table[0]
    scaled = blocks * _ratio(np.ones_like(width), width)
    above = np.clip(np.searchsorted(table, scaled, side="right"), 1, len(table) - 1)
    # Both distances are rounded to f32 before they are compared; of equal ones the upper step is taken.
    nearer = scaled - table[above - 1] < table[above] - scaled
    quants = table[np.where(nearer, above - 1, above)]
    weights = blocks * blocks * quants
    fitted, energy = (
        np.cumsum(weights * other, axis=-1, dtype=np.float32)[..., -1:] for other in (blocks, quants)
    )
    used = (energy > 0) & (np.max(np.abs(blocks), axis=-1, keepdims=True) >= _IQ4_LEAST)
    scale = np.divide(fitted, energy, out=np.zeros_like(fitted), where=used)
    return Blocks(
        values=blocks, quants=quants, scale=_f16(scale), width=width.astype(np.float64), levels=_IQ4_NL
    )


def iq4_nl(values: Values) -> F64:
    """ggml's ``iq4_nl``: blocks of 32, the nearest of 16 uneven steps, a scale refitted to them, as f16.

    In f32: d = (signed largest) / -127, ``x * (1 / d)`` goes to the nearest step q; the scale is then
    sum(w q x) / sum(w q q), w = x x, each product from the left and each sum in the order of the values. It
    is 0 where max|x| is below 1e-15. This is what a KV cache is written with; files are quantised with a
    search over several scales.
    """
    return decoded(_iq4_nl, values)


def f16(values: Values) -> F64:
    """IEEE binary16, to nearest, ties to even; subnormal numbers stay."""
    return round_f16(values).astype(np.float64)


def bf16(values: Values) -> F64:
    """The upper 16 bits of f32, to nearest, ties to even; subnormal numbers stay."""
    return round_bf16(values).astype(np.float64)


STEPS: Mapping[Callable[[Values], F64], Callable[[Values], Steps]] = {
    q8_256: partial(steps_of, _q8_256),
    q8_k: partial(steps_of, _q8_k),
    q8_0: partial(steps_of, _q8_0),
    q4_0: partial(steps_of, _q4_0),
    q4_1: partial(steps_of, _q4_1),
    q5_0: partial(steps_of, _q5_0),
    q5_1: partial(steps_of, _q5_1),
    iq4_nl: partial(steps_of, _iq4_nl),
    f16: partial(rounding_steps, round_f16, digits=11, least=-24),
    bf16: partial(rounding_steps, round_bf16, digits=8, least=-133),
}
"""What is left of values -> where the values lie between its steps.

Of ``iq4_nl`` a flip also refits the scale of its block, by up to a few of f16's units: what it then stores
is near ``(quants + flip) * scale``, and not that to the bit.
"""


ROTATED_BLOCK = 64
"""How many values of V llama.cpp turns together, whatever the size of a head (its pull request 21038)."""


TURN_ERROR = 2.0**-22
"""How far rotated values may be from those rotated here, in root mean squares of what was rotated: four f32
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


def rotated_edges(kept: Callable[[Values], F64]) -> Callable[[Values], F64]:
    """Return how far :func:`rotated_back` of ``kept`` may be off: an edge is spread over its block."""

    def off(values: Values) -> F64:
        found = edges(kept, hadamard_rotated(values, ROTATED_BLOCK), ROTATED_BLOCK)
        blocks = found.reshape(*values.shape[:-1], -1, ROTATED_BLOCK)
        spread = np.sqrt(np.mean(np.square(blocks), axis=-1, keepdims=True))
        return np.broadcast_to(spread, blocks.shape).reshape(values.shape)

    return off


def rotated_back(kept: Callable[[Values], F64]) -> Callable[[Values], F64]:
    """Return what ``kept`` leaves of values that are multiplied by a Hadamard matrix before and after it."""

    def back(values: Values) -> F64:
        held = kept(hadamard_rotated(values, ROTATED_BLOCK)).reshape(*values.shape[:-1], -1, ROTATED_BLOCK)
        result: F64 = held @ hadamard(ROTATED_BLOCK)
        return result.reshape(values.shape)

    return back


def rotation_size(head_dim: int) -> int:
    """Return how many channels of q and k llama.cpp turns at once: the largest power of two in head_dim."""
    return head_dim & -head_dim


def hadamard_rotated(values: Values, size: int) -> F64:
    """Turn each ``size`` values (a power of two) by the normalised Hadamard matrix, as llama.cpp's CPU does.

    In f32: every value times 1 / sqrt(size), then sums and differences of pairs that are 1, 2, 4 ... apart.
    That order is the same in every SIMD width (``ggml_compute_forward_fwht``); versions before it, and other
    devices, sum in another order. With it the scores of the real llama.cpp with a rotated K cache in q4_0,
    q8_0, q5_1 or iq4_nl are explained to 1.3e-7 in every layer; with sums in f64 some keep 6e-6 to 1.4e-4.
    """
    parts = values.astype(np.float32).reshape(-1, size) * (np.float32(1) / np.sqrt(np.float32(size)))
    for apart in (1 << power for power in range(size.bit_length() - 1)):
        pairs = parts.reshape(len(parts), -1, 2, apart)
        first, second = pairs[:, :, :1], pairs[:, :, 1:]
        parts = np.concatenate((first + second, first - second), axis=2).reshape(parts.shape)
    result: F64 = parts.reshape(values.shape).astype(np.float64)
    return result


def hadamard(size: int) -> F64:
    """Return the normalised Hadamard matrix of ``size`` (a power of two), Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    normalised: F64 = matrix / np.sqrt(size)
    return normalised
