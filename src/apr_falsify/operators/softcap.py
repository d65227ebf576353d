"""cap * tanh(x / cap), which keeps scores or logits within a cap (Bello et al. 2016; Gemma 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.operators.operator import Lines
from apr_falsify.operators.roundoff import F64, FEW, UNIT, lost, squared, stored

Array = npt.NDArray[np.floating[Any]]

_SATURATED = 1 - 2.0**-48
"""The share of a soft-cap from which tanh cannot be undone; the slope is 0 there."""


def softcap(x: Array, cap: float | None) -> Array:
    """Return ``cap * tanh(x / cap)``, ``x`` itself without a cap (Bello et al. 2016; Gemma 2)."""
    if cap is None:
        return x
    limit = x.dtype.type(cap)
    return np.asarray(np.tanh(x / limit) * limit)


def capped_variance(y: F64, cap: float | None, store: float, variance_of: Callable[[F64], F64]) -> F64:
    """Count what ``cap * tanh(x / cap)`` leaves of the rounding of x, and its own three roundings."""
    if cap is None:
        return variance_of(y)
    share = np.clip(y / cap, -_SATURATED, _SATURATED)
    slope = 1 - squared(share)
    own = stored(y, max(store, UNIT), 2 + FEW) + 2 * lost(store, cap)  # of x / cap, and of its tanh
    return np.asarray(squared(slope) * variance_of(cap * np.arctanh(share)) + own)


def capped_text(stage: str, value: str, cap: str) -> Lines:
    """Return the lines of a value, and of its cap where it has one."""
    return (f"{stage} = {value}",) + ((f"{stage} = np.tanh({stage} / {cap}) * {cap}",) if cap else ())
