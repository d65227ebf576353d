"""By how much a residual is beyond what rounding explains: per element, and over groups of elements.

A statistic over many tokens or channels is sharper than one value, but only where their roundings are
independent. Tokens whose inputs are equal (a repeated token, a run of blanks) make the same sums and are
rounded alike, so that n of them prove no more than one; so are channels whose weights are equal.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.roundoff import UNIT

F64 = npt.NDArray[np.float64]

LIMIT = 8.0
"""The floor, in units of the rounding's root mean square (``compare.floor``): the one constant.

``benchmarks/bench_floor.py`` shows how far correct runs stay below it and faults lie above.
"""

EXPLAINED_SHARE = 0.9
"""The share of elements within the limit from which an arithmetic is taken to be the runtime's own."""

_ALIKE = 2.0**-12
"""Rows that differ by less than this share of their size count as one.

Measured on f32 products of 256 to 3584 terms, by sums in sequence and by torch: the rounding errors of two
rows that differ by 1e-6 of their size have a correlation of 0.24 to 0.55, at 1e-5 of 0.05 to 0.16, at 1e-4 of
at most 0.03 and at 1e-3 of none.
"""

_ROUNDED_ALIKE = 8.0
"""In units of the roundoff of the format in which a stage is kept: rows that are nearer round to the same."""

_TOO_SHORT = 4
"""Fewer values than this do not tell whether two rows are alike."""

_SKETCH = 8
"""How many random sums stand for a row when rows are compared."""


def excess_of(ratio: F64, replayed: F64 | None = None, unit: float = UNIT) -> float:
    """Return the largest ratio of a residual to its limit, over elements, channels and tokens.

    The root mean square over m independent elements may reach a quarter of the limit, and as much more as
    chance allows for few: ``LIMIT * (1/4 + 3/4 / sqrt(m))``. It sees a fault that is small everywhere.

    Args:
        ratio: |residual| / sigma per element, canonical shape.
        replayed: what the stage should have been, same shape: rows (or channels) that are nearly equal there
            count as one. Where it is not given, each counts.
        unit: unit roundoff of the format in which the stage is kept.

    """
    worst = float(np.max(ratio)) / LIMIT
    rows = ratio.reshape(-1, ratio.shape[-1])
    for axis in (0, 1):
        count = rows.shape[axis]
        if count > 1:
            with np.errstate(over="ignore"):
                squares = np.einsum("ij,ij->" + "ji"[axis], rows, rows)
            found = _beyond(squares / count, count)
            if found > max(worst, 1.0) and replayed is not None:
                found = _of_independent(rows, replayed.reshape(rows.shape), axis, unit)
            worst = max(worst, found)
    return worst


def _beyond(mean_squares: F64, independent: int) -> float:
    """Return the largest ratio of a root mean square over so many independent elements to its limit."""
    return math.sqrt(float(np.max(mean_squares))) / (LIMIT * (0.25 + 0.75 / math.sqrt(independent)))


def _of_independent(rows: F64, replayed: F64, axis: int, unit: float) -> float:
    """Return what :func:`_beyond` says of groups along ``axis`` in which rows that are alike count as one."""
    labels = alike(replayed if axis == 0 else replayed.T, unit)
    sizes = np.bincount(labels)
    shares = 1 / (len(sizes) * sizes[labels])
    with np.errstate(over="ignore"):
        squares = np.square(rows)
    return _beyond(shares @ squares if axis == 0 else squares @ shares, len(sizes))


def alike(rows: F64, unit: float = UNIT) -> npt.NDArray[np.intp]:
    """Return a number for each row of [R, C]: rows that are nearly equal, in all columns, have the same.

    Each column counts in units of its own size, so that one massive channel does not hide the others. Rows
    are compared by a few random sums of their values, neighbours in the order of the first sum.
    """
    if rows.shape[1] < _TOO_SHORT:
        return np.arange(len(rows))
    finite = np.where(np.isfinite(rows), rows, 0.0)
    sizes = np.sqrt(np.mean(np.square(finite), axis=0))
    mixer = np.random.default_rng(0).standard_normal((rows.shape[1], _SKETCH))
    sketch = finite @ (mixer / np.where(sizes > 0, sizes, 1.0)[:, None])
    order = np.argsort(sketch[:, 0], kind="stable")
    ordered = sketch[order]
    length = np.linalg.norm(ordered, axis=1)
    apart = np.linalg.norm(np.diff(ordered, axis=0), axis=1)
    near = max(_ALIKE, _ROUNDED_ALIKE * unit) * np.maximum(length[1:], length[:-1])
    labels = np.empty(len(rows), np.intp)
    labels[order] = np.concatenate(([0], np.cumsum(apart > near)))
    return labels
