"""What proves that a stage is stored in another way than is declared, where a fault stands beside it.

Without a fault the proof is plain: every stage that is concerned, and all that is computed from it, is right
then. With one, fewer stages are wrong and no other one is; and of a factor, what is computed from it has the
size that it should have: a factor that the next stage does not undo is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from apr_falsify.compare.judge import Judged
from apr_falsify.compare.layout import FACTORS, canonical
from apr_falsify.model.reach import seen_keys
from apr_falsify.model.stages import Key, Layout
from apr_falsify.traces.trace import Trace


def is_right(entry: Judged) -> bool:
    """Whether a stage could be replayed and is within its floor."""
    return entry.fit is not None and not entry.in_error


def wrong(judged: Mapping[Key, Judged], keys: Collection[Key]) -> set[Key]:
    """Return those of ``keys`` that are in error, or could not be replayed."""
    return {key for key in keys if not is_right(judged[key])}


def helps(
    word: Layout,
    stages: Collection[str],
    trace: Trace,
    judged: Mapping[Key, Judged],
    again: Mapping[Key, Judged],
) -> bool:
    """Whether a layout word makes stages right and none wrong, while others stay wrong for their own reason.

    Args:
        word: the word.
        stages: the stages that it is about.
        trace: the run as it is declared.
        judged: its stages.
        again: those that the word concerns, and what is computed from them, judged with the word.

    """
    before, after = wrong(judged, again), wrong(again, again)
    if after - before:
        return False
    if word in FACTORS:
        return bool(_of(stages, before - after)) and _readers_prove_it(before, after, stages, judged, again)
    return len(after) < len(before) or any(
        _lacks_data(trace, key) and _is_much_nearer(judged[key], again[key]) for key in _of(stages, after)
    )


def is_read(stages: Collection[str], judged: Mapping[Key, Judged], again: Mapping[Key, Judged]) -> bool:
    """Whether what is computed from ``stages`` was wrong and is right ``again``, which proves a factor."""
    return any(
        key.stage not in stages and not is_right(judged[key]) and is_right(again[key]) for key in again
    )


def _of(stages: Collection[str], keys: Collection[Key]) -> list[Key]:
    return [key for key in keys if key.stage in stages]


def _readers_prove_it(
    before: Collection[Key],
    after: Collection[Key],
    stages: Collection[str],
    judged: Mapping[Key, Judged],
    again: Mapping[Key, Judged],
) -> bool:
    """Whether what is computed from ``stages`` has its right size with the factor, and had not without."""
    readers = [key for key in before if key.stage not in stages]
    gained = [_distance(judged[key]) - _distance(again[key]) for key in readers if key in after]
    mended = any(key not in after for key in readers)
    return all(gain >= -_SAME_SIZE for gain in gained) and (
        mended or any(gain > _SAME_SIZE for gain in gained)
    )


_SAME_SIZE = 1e-3
"""How much the logarithm of a stage's size may change by chance where a factor does not concern it."""


def _distance(entry: Judged) -> float:
    """Return how far the size of a stage is from that of its replay: the logarithm of their ratio."""
    ratio = 0.0 if entry.introduced is None else entry.introduced.norm_ratio
    return abs(math.log(ratio)) if 0 < ratio < math.inf else _FAR


_FAR = 700.0
"""About the logarithm of the largest f64: the distance of what is zero, infinite or could not be replayed."""


def _is_much_nearer(before: Judged, after: Judged) -> bool:
    if before.fit is None or after.fit is None:
        return False
    only_then = math.isinf(before.fit.excess) and math.isfinite(after.fit.excess)
    return only_then or after.fit.residual < before.fit.residual / 2  # of NaN alone both are 0


def _lacks_data(trace: Trace, key: Key) -> bool:
    """Whether zeros, or values that are not finite, stand where no query may look."""
    values = canonical(trace.stages[key], key, trace.geometry, trace.passes)
    passes = trace.passes
    hidden = values[:, ~seen_keys(trace.geometry, key.layer, passes)[passes.unseen :]]
    return bool(np.any((hidden == 0) | ~np.isfinite(hidden)))
