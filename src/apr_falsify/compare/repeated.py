"""Sums over keys that are alike: what is lost of each term goes one way, and adds up.

A term that is added again to a sum of the same size is rounded by the same amount in the same direction: m of
them are off by m times that, and not by sqrt(m) times. So are terms of one sign, each small beside their sum.
No sum is off by more than n roundings of its terms' magnitudes, which is then what is allowed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.excess import LIMIT, alike
from apr_falsify.compare.roundoff import UNIT

F64 = npt.NDArray[np.float64]

_ONE_SIZE = 2.0**-9
"""As a unit roundoff (see :func:`alike`): keys that differ by less than 1.6 % make terms of one size."""


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
