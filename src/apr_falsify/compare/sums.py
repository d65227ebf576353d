"""The one pass over two arrays: f64 sums of squares by row and column, the greatest difference, NaN and Inf.

The arrays are cut into segments of whole rows, segments into tiles that stay in a core's cache together
with their f64 copies. A few threads take segments (NumPy releases the GIL), but the cut depends on the
shape alone and partial sums are added in the order of the segments, so that the result does not depend on
how many threads there are or how they were scheduled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

ORACLE, SUBJECT, DIFFERENCE, EXCLUDED = range(4)
"""The rows of a table of sums: |o|^2, |s|^2, |s - o|^2, and how many positions were left out."""

_TILE = 1 << 17
"""Values in a tile: small enough for three f64 copies (3 MiB) to stay in the last cache, large enough that
threads seldom meet at the interpreter's lock between operations; measured by benchmarks/bench_compare.py."""

_TILE_WIDTH = 1 << 12
"""Columns in a tile: few, so that summing by column has several rows to add at once."""

_SEGMENT = 1 << 21
"""Values in a segment, the unit of work of a thread."""

_MAX_THREADS = 4
_SAFE_EXPONENT = 256
"""f64 values up to 2**256 and down to 2**-256 can be squared and summed as they are."""


@dataclass(slots=True, kw_only=True)
class Sums:
    """What one pass over [R, C] finds.

    Positions where either side is NaN or infinite are left out of ``rows``, ``columns`` and ``best``.

    Attributes:
        rows: [4, R], see :data:`ORACLE`.
        columns: [4, C], likewise.
        best: the greatest (s - o)^2, negative where nothing was compared.
        best_at: its row and column, the first in row order.
        oracle_nonfinite: how many values of the oracle are NaN or infinite.
        subject_nonfinite: how many of the subject.
        mismatched: positions where a side is NaN or infinite and the other is not the same.
        scale: what the values were multiplied with, a power of two; 1 but for extreme f64 values.

    """

    rows: F64
    columns: F64
    best: float = -1.0
    best_at: tuple[int, int] = (-1, -1)
    oracle_nonfinite: int = 0
    subject_nonfinite: int = 0
    mismatched: int = 0
    scale: float = 1.0


def sums(oracle: Array, subject: Array, stretch: float = 1.0) -> Sums:
    """Sum two arrays [R, C] of one shape, neither axis empty; the subject times ``stretch``.

    Peak memory beyond the result: 3 MiB of tiles a thread, and 32 bytes a column for each segment.
    """
    scale = _scale(oracle, subject)
    scales = np.array([scale, scale * stretch])
    rows, columns = oracle.shape
    step = max(1, _SEGMENT // columns)
    ranges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    total = Sums(rows=np.empty((4, rows)), columns=np.zeros((4, columns)), scale=scale)
    for (start, stop), part in zip(ranges, _parts(oracle, subject, ranges, scales), strict=True):
        _add(total, part, start, stop)
    return total


def _parts(oracle: Array, subject: Array, ranges: list[tuple[int, int]], scales: F64) -> Iterator[Sums]:
    work = partial(_segment, oracle, subject, scales)
    if len(ranges) == 1:
        yield work(ranges[0])
        return
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # A few segments at a time: what waits to be added never grows with the array.
        for first in range(0, len(ranges), 4 * threads):
            yield from pool.map(work, ranges[first : first + 4 * threads])


def _add(total: Sums, part: Sums, start: int, stop: int) -> None:
    total.rows[:, start:stop] = part.rows
    total.columns += part.columns
    total.oracle_nonfinite += part.oracle_nonfinite
    total.subject_nonfinite += part.subject_nonfinite
    total.mismatched += part.mismatched
    if part.best > total.best:
        total.best, total.best_at = part.best, (part.best_at[0] + start, part.best_at[1])


def _segment(oracle: Array, subject: Array, scales: F64, rows: tuple[int, int]) -> Sums:
    o, s = oracle[slice(*rows)], subject[slice(*rows)]
    part = Sums(rows=np.zeros((4, o.shape[0])), columns=np.zeros((4, o.shape[1])))
    buffer = np.empty((3, min(_TILE, o.size)))
    # Inf - Inf is met here and sorted out below; error states do not pass from thread to thread.
    with np.errstate(invalid="ignore", over="ignore"):
        for tile in _tiles(*o.shape):
            _tile(part, tile, o[tile], s[tile], buffer, scales)
    return part


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    width = min(columns, _TILE_WIDTH)
    height = _TILE // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def _tile(
    part: Sums,
    tile: tuple[slice, slice],
    o: Array,
    s: Array,
    buffer: F64,
    scales: F64,
    mask: Array | None = None,
) -> None:
    """Add one tile to ``part``; where it turns out to hold NaN or Inf, do it again with these left out."""
    flat = buffer[:, : o.size]
    squares = flat.reshape(3, *o.shape)
    _fill(squares, o, s, scales)
    if mask is not None:
        squares[:, mask] = 0.0
    np.square(flat, out=flat)
    by_row = np.einsum("kij->ki", squares)  # on short rows several times as fast as sum
    if not np.isfinite(by_row).all():
        _tile(part, tile, o, s, buffer, scales, _leave_out(part, tile, o, s))
        return
    part.rows[:3, tile[0]] += by_row
    part.columns[:3, tile[1]] += squares.sum(axis=1)
    if mask is not None:
        squares[DIFFERENCE][mask] = -1.0
    _find_greatest(part, tile, flat[DIFFERENCE], o.shape[1])


def _fill(values: F64, o: Array, s: Array, scales: F64) -> None:
    np.copyto(values[ORACLE], o, casting="unsafe")
    np.copyto(values[SUBJECT], s, casting="unsafe")
    if (scales != 1.0).any():
        values[:DIFFERENCE] *= scales[:, None, None]
    np.subtract(values[SUBJECT], values[ORACLE], out=values[DIFFERENCE])


def _leave_out(part: Sums, tile: tuple[slice, slice], o: Array, s: Array) -> npt.NDArray[np.bool_]:
    """Count the tile's NaN and Inf, and return where either side has one."""
    finite_o, finite_s = np.isfinite(o), np.isfinite(s)
    mask = ~(finite_o & finite_s)
    same = (o == s) | (np.isnan(o) & np.isnan(s))
    part.oracle_nonfinite += int(o.size - np.count_nonzero(finite_o))
    part.subject_nonfinite += int(s.size - np.count_nonzero(finite_s))
    part.mismatched += int(np.count_nonzero(mask & ~same))
    part.rows[EXCLUDED, tile[0]] += np.count_nonzero(mask, axis=1)
    part.columns[EXCLUDED, tile[1]] += np.count_nonzero(mask, axis=0)
    return mask


def _find_greatest(part: Sums, tile: tuple[slice, slice], squares: F64, width: int) -> None:
    greatest = float(squares.max())
    if greatest < max(part.best, 0.0):
        return
    row, column = divmod(int(squares.argmax()), width)
    at = (tile[0].start + row, tile[1].start + column)
    if greatest > part.best or at < part.best_at:
        part.best, part.best_at = greatest, at


def _scale(*arrays: Array) -> float:
    """Return a power of two that brings extreme f64 values to where squares neither overflow nor vanish."""
    if all(array.dtype.itemsize <= 4 for array in arrays):
        return 1.0
    exponent = math.frexp(max(_greatest_finite(array) for array in arrays))[1]
    return 1.0 if abs(exponent) <= _SAFE_EXPONENT else 2.0 ** -max(exponent, -1000)


def _greatest_finite(array: Array) -> float:
    step = max(1, _TILE // array.shape[1])
    rows = (np.abs(array[top : top + step]) for top in range(0, len(array), step))
    return max(float(np.max(block, where=np.isfinite(block), initial=0.0)) for block in rows)
