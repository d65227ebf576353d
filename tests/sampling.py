"""Which cases of a large cross the suite runs: a fixed sample, or all with ``APR_FALSIFY_EVERY=1``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

EVERY = bool(os.environ.get("APR_FALSIFY_EVERY"))


def one_in(share: int, cases: Iterable[T], start: int = 0) -> list[T]:
    """Return one case in ``share``, beginning at ``start``, so that callers can run different ones."""
    step = 1 if EVERY else share
    return list(itertools.islice(cases, start % step, None, step))


def in_turn(names: Iterable[str], *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return for each name one combination of the axes, so that every combination occurs with some names."""
    combinations = list(itertools.product(*axes))
    if EVERY:
        return [(name, *one) for name in names for one in combinations]
    return [(name, *combinations[at % len(combinations)]) for at, name in enumerate(names)]
