"""Sums over keys that are alike: what is lost of each term goes one way, and adds up.

A term that is added again to a sum of the same size is rounded by the same amount in the same direction: m of
them are off by m times that, and not by sqrt(m) times. So are terms of one sign, each small beside their sum.
No sum is off by more than n roundings of its terms' magnitudes, which is then what is allowed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr_falsify.operators.roundoff import LIMIT, UNIT

F64 = npt.NDArray[np.float64]

_ONE_SIZE = 2.0**-9
"""As a unit roundoff (see :func:`alike`): keys that differ by less than 1.6 % make terms of one size."""


_ALIKE = 2.0**-12
"""Rows that differ by less than this share of their size count as one.

Measured on f32 products of 256 to 3584 terms, by sums in sequence and by torch: the rounding errors of two
rows that differ by 1e-6 of their size have a correlation of 0.24 to 0.55, at 1e-5 of 0.05 to 0.16, at 1e-4 of
at most 0.03 and at 1e-3 of none.
"""

_ROUNDED_ALIKE = 8.0
"""In units of the roundoff of a stage's format: rows that are nearer round to the same."""

_TOO_SHORT = 4
"""Fewer values than this do not tell whether two rows are alike."""

_SKETCH = 8
"""How many random sums stand for a row when rows are compared."""


def added_up(weights: F64, keys: F64, y: F64, sizes: F64, variance: F64) -> F64:
    """Return the variance of a mix of keys of which some are alike: [S, H * D].

    Args:
        weights: the weights of the keys [H, S, S].
        keys: the keys' values [S, K * D].
        y: the mix [S, H * D].
        sizes: the sums of the magnitudes of its terms, same shape.
        variance: that of independent terms.

    """
    seen = np.count_nonzero(weights, axis=-1).T.astype(np.float64)
    most = sizes * np.repeat(seen, y.shape[-1] // seen.shape[-1], axis=-1) * (UNIT / LIMIT)
    found = np.square(most * one_sign(y, sizes))
    more = repeats(keys, weights)
    if more is not None:
        found = np.maximum(found, np.minimum(variance * more[:, None], np.square(most)))
    return np.asarray(found)


def one_sign(y: F64, sizes: F64) -> F64:
    """Return how far the terms of ``y`` have one sign: 1 where all do, next to 0 where they cancel."""
    share = np.divide(np.abs(y), sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return np.asarray(np.minimum(share, 1.0) ** 4)


def repeats(keys: F64, weights: F64) -> F64 | None:
    """Return how many times larger the variance of sums over equal terms is than over independent ones: [S].

    Of a row that sees n keys, in groups of m that are alike, that is the sum of m^2 over n. ``None`` where no
    two keys are alike.

    Args:
        keys: what is summed, a row for each key [S, C].
        weights: the weights of the keys [H, S, S].

    """
    labels = alike(keys, _ONE_SIZE)
    groups = int(labels.max()) + 1
    if groups == len(keys):
        return None
    members = np.zeros((len(keys), groups))
    members[np.arange(len(keys)), labels] = 1
    counts = (weights.max(axis=0) > 0).astype(np.float64) @ members
    return np.asarray(np.sum(np.square(counts), axis=1) / np.maximum(np.sum(counts, axis=1), 1))


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
