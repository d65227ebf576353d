"""A product with weights, decoded once, under several arithmetics; and the rounding that its sums bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import QuantisedTensor, Tensor
from apr_falsify.formats.views import HalfSplit, ViewedTensor, block_minima, has_block_minima
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import MINIMA, Rule
from apr_falsify.operators.operator import Array
from apr_falsify.operators.roundoff import UNIT, lost

F64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

_BLOCK_VALUES = 1 << 18
"""How many weights are decoded at once: 2 MB as f64, which stays in a core's cache."""


def product(
    x: Array, rules: tuple[Rule, ...], carried: F64 | None, weight: Tensor, whole: F64 | None = None
) -> tuple[F64, F64]:
    """Multiply ``x`` with ``weight`` [out, in] under each of ``rules``, and return the rounding of the sums.

    Args:
        x: [..., in].
        rules: what becomes of ``x`` before it is multiplied.
        carried: the sigma that ``x`` carries, in unit roundoffs.
        weight: the projection's weights.
        whole: where ``x`` is one token's row [in], those of all tokens, of which it is the last.

    Returns:
        [rules, ..., out] in f64, and the variance [..., out] of a plain f32 sum in squared unit
        roundoffs (see ``compare.floor``), with that of an integer kernel's offsets where a rule has blocks.

    """
    own = tuple(rule.of(weight.type) for rule in rules)
    left = [rule.left(x) if whole is None or not rule.over_tokens else rule.left(whole)[-1] for rule in own]
    values, noise = _multiplied(np.stack(left), x, carried, weight)
    for index, rule in enumerate(own):
        if rule.block_sums and has_block_minima(weight):
            values[index] += quantise.q8_1_block_sums(x) @ block_minima(weight).T
    if any(rule.block > 1 for rule in own):
        noise += _offset_noise(x, weight)
    return values, noise


def _multiplied(operands: F64, x: Array, carried: F64 | None, weight: Tensor) -> tuple[F64, F64]:
    out, width = weight.shape
    left = operands.reshape(-1, width)
    scale = _scale(x)  # squares of what f32 holds may be beyond its range
    squares = np.square(x / scale) * (width / 6) + (0.0 if carried is None else np.square(carried / scale))
    # Variances need no more than f32, and half the memory traffic.
    energies = squares.reshape(-1, width).astype(np.float32)
    values, noise = np.empty((len(left), out)), np.empty((len(energies), out))
    step = max(1, _BLOCK_VALUES // width)
    for start in range(0, out, step):
        stop = min(out, start + step)
        rows = weight.rows(start, stop)
        values[:, start:stop] = left @ rows.astype(np.float64).T
        noise[:, start:stop] = _energy(energies, rows)
    shaped = values.reshape(*operands.shape[:-1], out)
    own = noise.reshape(*x.shape[:-1], out) * np.square(scale)
    return shaped, own + np.square(shaped[0]) * (width / 9) + lost(0.0, width) / UNIT**2


_EXTREME = 2.0**40
"""Weights that are all larger, or all smaller than its inverse, are scaled before they are squared."""


def _energy(energies: npt.NDArray[np.float32], rows: Array) -> npt.NDArray[np.float32] | F64:
    """Return ``energies`` @ rows^2.T."""
    squares = np.square(rows, dtype=np.float32)
    largest = float(np.max(squares, initial=0.0))
    if _EXTREME**-2 < largest < _EXTREME**2:
        return np.asarray(energies @ squares.T)
    scale = _scale(rows.astype(np.float64))
    scaled = np.square(rows / scale).astype(np.float32)
    return (energies @ scaled.T).astype(np.float64) * np.square(scale).T


def _scale(x: Array) -> F64:
    """Return the largest finite magnitude of each row of ``x``, [..., 1]; 1 where there is none."""
    size = np.abs(x)
    largest = np.max(size, axis=-1, keepdims=True, where=np.isfinite(size), initial=0.0)
    return np.where(largest > 0, largest, 1.0).astype(np.float64)


def block_sum_scores(q: F64, k: F64, rule: Rule, geometry: Geometry, layer: int | None) -> tuple[F64, F64]:
    """Return what multiplying the minima of a K cache's blocks apart adds to the scores [H, S, S].

    Returns:
        The scores that the rounding of q's block sums adds, and the sigma that summing apart does.

    """
    minima, extra = MINIMA[rule.right](k), quantise.q8_1_block_sums(q)
    sums = np.asarray(np.sum(quantise.blocks_of(q, quantise.BLOCK), axis=-1, dtype=np.float64))
    scale, blocks = geometry.attn_scale_at(layer), geometry.head_dim // quantise.BLOCK
    groups = geometry.heads // geometry.kv_heads
    extra, sums = (part.reshape(len(part), -1, blocks).swapaxes(0, 1) for part in (extra, sums))
    minima = minima.reshape(len(minima), -1, blocks).swapaxes(0, 1)
    right = np.repeat(minima, groups, axis=0).swapaxes(-1, -2)
    noise = 2 * (blocks / 6 + 1) * UNIT**2 * np.square(sums)
    sigma = np.sqrt(noise @ np.square(right)) * abs(scale)
    return np.asarray(extra @ right * scale), np.asarray(sigma)


def turning_noise(values: F64) -> F64:
    """Return the sigma of turning ``values`` [..., n] back in blocks: f32 sums of as many terms."""
    blocks = values.reshape(*values.shape[:-1], -1, quantise.ROTATED_BLOCK)
    energy = np.mean(np.square(blocks), axis=-1, keepdims=True)
    noise: F64 = UNIT * np.sqrt(quantise.ROTATED_BLOCK / 6 * (energy + np.square(blocks)))
    return noise.reshape(values.shape)


def _offset_noise(x: Array, weight: Tensor) -> F64 | float:
    """Return the variance [..., out] that offsets summed apart bring, in squared unit roundoffs.

    A weight is step * integer + offset, and ggml's kernels sum the two products of a block apart, in f32:
    where a large activation meets a small weight, each is far larger than what is left of both.
    """
    offsets = _offsets(weight)
    if offsets is None:
        return 0.0
    sums = np.zeros((*x.shape[:-1], offsets.shape[-1]))  # a row's last block may be filled up
    found = quantise.blocks_of(x, SUB_BLOCKS[weight.type]).sum(axis=-1, dtype=np.float64)
    sums[..., : found.shape[-1]] = found
    per_term = 2 * (offsets.shape[-1] / 6 + 1)
    return np.asarray(per_term * (np.square(sums) @ np.square(offsets).T))


SUB_BLOCKS: Mapping[str, int] = {
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), 32),
    **dict.fromkeys(("q2_k", "q6_k", "tq1_0", "tq2_0"), 16),
}
"""Types whose kernels multiply offsets apart -> how many values share one."""


def _f16(blocks: Bytes, at: int) -> F64:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float64)


def _minima_of_6_bits(blocks: Bytes) -> F64:
    import gguf  # here, since most products need none of it

    _, minima = gguf.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return np.asarray(_f16(blocks, 2) * minima)


_READ: Mapping[str, Callable[[Bytes], F64]] = {
    "q4_1": lambda blocks: _f16(blocks, 2),
    "q5_1": lambda blocks: _f16(blocks, 2),
    "q2_k": lambda blocks: _f16(blocks, 82) * (blocks[:, :16] >> 4),
    "q4_k": _minima_of_6_bits,
    "q5_k": _minima_of_6_bits,
    "tq1_0": lambda blocks: np.repeat(_f16(blocks, 52), 16, axis=1),
    "tq2_0": lambda blocks: np.repeat(_f16(blocks, 64), 16, axis=1),
    "q6_k": lambda blocks: 32 * _f16(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8),
}
"""Type -> the offsets of its blocks [blocks, bytes], as ``ggml-common.h`` lays them out."""


def _offsets(tensor: Tensor) -> F64 | None:
    """Return the offset of each sub-block, [out, in / sub-block]; ``None`` where there are none."""
    if isinstance(tensor, ViewedTensor) and isinstance(tensor.view, HalfSplit):
        found = _offsets(tensor.base)
        return None if found is None else tensor.view.of_whole_heads(found)
    if not isinstance(tensor, QuantisedTensor) or tensor.type not in _READ:
        return None
    import gguf

    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type.upper()]]
    return _READ[tensor.type](tensor.data.reshape(-1, size)).reshape(tensor.shape[0], -1)
