"""The grid of a weight that was multiplied out: step and zero point of each group, from its values alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.quantised.grid import Grid, GridTensor, even_groups
from apr_falsify.formats.tensors import PlainTensor

F64 = npt.NDArray[np.float64]

_SIZES = (256, 128, 64, 32, 16)
"""Sizes of groups that are looked for, after the whole row."""

_ROWS = 16
"""As many rows must lie on a grid before a weight is taken to."""

_LEVELS = 255
_TOLERANCE = 2.0**-10
"""Relative to the largest value of a group; one that was kept as f16 is off by half as much."""


def solved(tensor: PlainTensor) -> GridTensor | None:
    """Return ``tensor`` as the codes, steps and zero points it was made of, ``None`` where it was of none.

    The smallest code of a group is taken to be 0, as quantisers that use the whole range have it.
    """
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        return None
    width = tensor.shape[1]
    sample = tensor.rows(0, _ROWS).astype(np.float64)
    sizes = (width, *(size for size in _SIZES if size < width and width % size == 0))
    size = next((size for size in sizes if _steps(sample.reshape(-1, size)) is not None), None)
    if size is None:
        return None

    def read(start: int, stop: int) -> Grid:
        return _grid(tensor.rows(start, stop).astype(np.float64), size)

    return GridTensor(name=tensor.name, type=tensor.type, shape=tensor.shape, read=read)


def _grid(values: F64, size: int) -> Grid:
    blocks = values.reshape(len(values) * values.shape[1] // size, size)
    steps = _steps(blocks)
    if steps is None:  # beyond the rows that were looked at it may be another weight: each value its own code
        steps = np.where(np.abs(blocks).max(axis=1) > 0, np.abs(blocks).max(axis=1) / _LEVELS, 0.0)
    divisors = np.where(steps > 0, steps, 1.0)[:, None]
    codes = np.rint(blocks / divisors) if _steps(blocks) is not None else blocks / divisors
    zeros = -codes.min(axis=1, keepdims=True)
    shape = (len(values), -1)
    return Grid(
        codes=(codes + zeros).reshape(values.shape).astype(np.float32),
        scales=steps.reshape(shape).astype(np.float32),
        zeros=zeros.reshape(shape).astype(np.float32),
        groups=even_groups(values.shape[1], size),
    )


def _steps(blocks: F64) -> F64 | None:
    """Return the step of each block [blocks], 0 where all is 0; ``None`` where some block has none."""
    if not np.isfinite(blocks).all():
        return None
    largest = np.abs(blocks).max(axis=1)
    gaps = np.diff(np.sort(np.concatenate((blocks, np.zeros((len(blocks), 1))), axis=1), axis=1), axis=1)
    least = np.where(gaps > largest[:, None] / (2 * _LEVELS), gaps, np.inf).min(axis=1)
    step = np.where(np.isfinite(least), least, 0.0)
    safe = np.where(step > 0, step, 1.0)[:, None]
    codes = np.rint(blocks / safe)
    energy = np.square(codes).sum(axis=1)
    step = np.where(energy > 0, (blocks * codes).sum(axis=1) / np.where(energy > 0, energy, 1.0), 0.0)
    left = np.abs(blocks - codes * step[:, None]).max(axis=1)
    fits = (left <= _TOLERANCE * largest) & (np.ptp(codes, axis=1) <= _LEVELS)
    return step if fits.all() else None
