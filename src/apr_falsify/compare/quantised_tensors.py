"""A quantised tensor against the one that it was made of: is it that, up to what such quantising costs?

What a step of the grid is follows from the right values and the groups that the file has: twice the largest
magnitude of a group over the steps of its codes. Rounding to nearest leaves 1/12 of its square; quantisers
that weigh errors by activations leave up to twice that in amplitude, and clip. A tensor that is farther off
is tried again as a reader or writer may have mistaken it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.misreadings import Misreading, misreadings
from apr_falsify.formats.quantised.grid import GridTensor
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.views import ViewedTensor

F64 = npt.NDArray[np.float64]

_CODES: Mapping[str, float] = {
    **{f"int{bits}": float((1 << bits) - 1) for bits in range(2, 9)},
    **dict.fromkeys(("mxfp4", "nvfp4", "nf4", "fp4"), 12.0),
}
"""Format -> steps of its grid over twice the largest magnitude of a group; of floats, in their outer part."""

_FLOATS: Mapping[str, float] = {"fp8_e4m3": 2.0**-3, "fp8_e5m2": 2.0**-2}
"""Format of floats -> its step, relative to the value."""

_SUSPECT = 2.0
"""From so many times the noise of rounding to nearest, a tensor is looked at more closely."""

_WRONG = 3.0
"""From so many times that noise, a row is not what it was made of."""

_SCALED = 8.0
"""From so many times what rounding leaves of it, root mean square over its groups, a row has other scales.

Rounding to nearest leaves 1; quantisers that clip, or weigh errors by activations, leave up to 5 of weights
with heavy tails (simulated, in groups of 32 to whole rows of 512).
"""

_KEPT_SCALES = 2.0**-7
"""By so much a factor may differ from 1: scales may be rounded to 16 bits after the codes were chosen."""

_NEARER = 0.5
"""A mistake is named where it leaves less than this share of the difference."""

_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """How a quantised tensor differs beyond what its format costs.

    Attributes:
        rows: rows that do.
        total: all rows.
        rel_l2: relative L2 of the whole tensor's difference.
        misread: the mistake that explains it, ``None`` where none does.
        left: relative L2 of what that mistake leaves.

    """

    rows: int
    total: int
    rel_l2: float
    misread: Misreading | None = None
    left: float = 0.0


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor is read from codes and scales of a quantised checkpoint."""
    return isinstance(_held(tensor), GridTensor)


def _held(tensor: Tensor) -> Tensor:
    """Return the tensor that a file holds, whatever is seen of it."""
    return _held(tensor.base) if isinstance(tensor, ViewedTensor) else tensor


def excess(ours: Tensor, theirs: Tensor, rows: F64, columns: F64) -> Excess:
    """Compare a quantised tensor with the right one.

    Args:
        ours: what is right, [out, in].
        theirs: the one in question, whose groups say over what a scale was chosen.
        rows: by what the output channels of ``ours`` were multiplied before it was quantised, [out].
        columns: the same of its input channels, [in].

    """
    count = theirs.shape[0]
    groups = _groups(theirs)
    off, allowed, scaled, energy = np.zeros(count), np.zeros(count), np.zeros(count), 0.0
    for start in range(0, count, _ROWS):
        stop = min(count, start + _ROWS)
        right = _scaled(ours, start, stop, rows, columns)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = theirs.rows(start, stop) - right
            off[start:stop] = np.sum(np.square(apart), axis=1)
        noise = np.square(_steps(right, groups, theirs.type)) / 12
        allowed[start:stop] = np.sum(noise, axis=1)
        scaled[start:stop] = _scaled_by(apart, right, noise, groups)
        energy += float(np.sum(np.square(right)))
    total = float(np.sum(off))
    wrong = int(np.count_nonzero(~(off <= _WRONG**2 * allowed) | (scaled > _SCALED)))
    misread, left = None, total
    if wrong or not total <= _SUSPECT**2 * float(np.sum(allowed)):
        misread, left = _explained(ours, theirs, rows, columns, total)
    scale = energy or 1.0
    return Excess(
        rows=wrong, total=count, rel_l2=(total / scale) ** 0.5, misread=misread, left=(left / scale) ** 0.5
    )


def _scaled(ours: Tensor, start: int, stop: int, rows: F64, columns: F64) -> F64:
    return ours.rows(start, stop).astype(np.float64) * rows[start:stop, None] * columns


def _groups(tensor: Tensor) -> npt.NDArray[np.intp]:
    base = _held(tensor)
    assert isinstance(base, GridTensor)
    return base.read(0, 1).groups


def _steps(right: F64, groups: npt.NDArray[np.intp], kind: str) -> F64:
    """Return the step of the grid that each value [rows, in] would have."""
    largest = np.zeros((len(right), int(groups.max()) + 1))
    np.maximum.at(largest.T, groups, np.abs(right).T)
    if kind in _FLOATS:
        return np.abs(right) * _FLOATS[kind] + largest[:, groups] * 2.0**-9
    return 2 * largest[:, groups] / _CODES[kind]


def _scaled_by(apart: F64, right: F64, noise: F64, groups: npt.NDArray[np.intp]) -> F64:
    """Return by how much the groups of each row [rows] are scaled, in units of what rounding leaves of that.

    A group's factor less 1 is <apart, right> / <right, right>. Rounding, independent of the value, gives it
    the variance sum(noise * right^2) / <right, right>^2. A single group says little, a row of them much.
    """
    count = int(groups.max()) + 1
    along, spread, energy = np.zeros((3, count, len(right)))
    with np.errstate(invalid="ignore", over="ignore"):
        np.add.at(along, groups, (apart * right).T)
        np.add.at(spread, groups, (noise * np.square(right)).T)
        np.add.at(energy, groups, np.square(right).T)
        beyond = np.maximum(np.abs(along) - _KEPT_SCALES * energy, 0.0)
        ratio = np.square(beyond) / np.where(spread > 0, spread, np.inf)
    found = np.sqrt(np.mean(ratio, axis=0))
    return np.asarray(np.where(np.isfinite(found), found, np.inf))


def _explained(
    ours: Tensor, theirs: Tensor, rows: F64, columns: F64, total: float
) -> tuple[Misreading | None, float]:
    """Return the mistake that leaves least of a difference, where it leaves little, and what is left."""
    best, least = None, total if np.isfinite(total) else _energy(ours, rows, columns)
    limit = _NEARER**2 * least
    for one in misreadings(theirs):
        left = 0.0
        for start in range(0, theirs.shape[0], _ROWS):
            stop = min(theirs.shape[0], start + _ROWS)
            right = _scaled(ours, start, stop, rows, columns)
            with np.errstate(invalid="ignore", over="ignore"):
                left += float(np.sum(np.square(one.tensor.rows(start, stop) - right)))
            if not left < least:
                break
        if left < least:
            best, least = one, left
    return (best, least) if best is not None and not least > limit else (None, total)


def _energy(ours: Tensor, rows: F64, columns: F64) -> float:
    """Return the sum of the squares of the right values, by which a difference without bound is judged."""
    starts = range(0, ours.shape[0], _ROWS)
    return float(
        sum(
            np.sum(np.square(_scaled(ours, start, min(ours.shape[0], start + _ROWS), rows, columns)))
            for start in starts
        )
    )
