"""By how much a residual is beyond what rounding explains: per element, and over groups of elements.

Over many tokens or channels smaller errors show than in one value, but only where their roundings are
independent. Tokens whose inputs are equal (a repeated token, a run of blanks) make the same sums and are
rounded alike, so that n of them prove no more than one; so are channels whose weights are equal.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from apr_falsify.operators.repeated import alike
from apr_falsify.operators.roundoff import LIMIT, UNIT

F64 = npt.NDArray[np.float64]

EXPLAINED_SHARE = 0.9
"""The share of elements within the limit from which an arithmetic is taken to be the runtime's own."""


def excess_of(ratio: F64, replayed: F64 | None = None, unit: float = UNIT) -> float:
    """Return the largest ratio of a residual to its limit, over elements, channels and tokens.

    The root mean square over m independent elements may reach a quarter of the limit, and as much more as
    chance allows for few: ``LIMIT * (1/4 + 3/4 / sqrt(m))``. It sees a fault that is small everywhere.

    Args:
        ratio: |residual| / sigma per element, canonical shape.
        replayed: what the stage should have been, same shape: rows (or channels) that are nearly equal there
            count as one. Where it is not given, each counts.
        unit: unit roundoff of the format in which the stage is stored.

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
