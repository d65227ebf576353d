"""Where tokens stand that stand elsewhere, in words."""

from __future__ import annotations

import numpy as np

from apr_falsify.compare.variations.case import F64
from apr_falsify.model.passes import Passes

_LISTED = 4


def run_on_words(right: F64, found: F64, passes: Passes) -> str:
    """Say what positions that are wrong in a way of their own come from; empty where nothing is known."""
    shift = np.unique(found - right)
    starts = np.repeat(passes.at[list(passes.starts)], passes.sizes)[passes.tokens - len(right) :]
    if len(passes.sizes) > 1 and np.array_equal(found, right - starts):
        return "the positions begin again at 0 in each pass"
    if len(passes.sizes) > 1 and np.array_equal(found[: passes.sizes[0]], right[: passes.sizes[0]]):
        return "the passes after the first stand elsewhere; a token's position counts those of earlier passes"
    if len(shift) == 1 and shift[0] == passes.padding > 0:
        return f"the positions run on through the {passes.padding} tokens of padding, which count none"
    if len(shift) == 1 and shift[0] > 0:
        return f"the first token stands at 0: so positions run on through left padding of {int(shift[0])}"
    return ""


def position_words(right: F64, found: F64) -> str:
    """Say where tokens stand that stand elsewhere: in runs that are shifted alike, or stand still."""
    tokens, places = right.astype(int).tolist(), found.astype(int).tolist()
    runs: list[list[tuple[int, int]]] = []
    for token, place in zip(tokens, places, strict=True):
        if place == token:
            continue
        if runs and runs[-1][-1][0] == token - 1 and _goes_on(runs[-1], place):
            runs[-1].append((token, place))
        else:
            runs.append([(token, place)])
    said = [_run_words(run) for run in runs[:_LISTED]]
    more = [f"{len(runs) - _LISTED} more runs of tokens elsewhere"] if len(runs) > _LISTED else []
    return " and ".join([", ".join(said), *more])


def _goes_on(run: list[tuple[int, int]], place: int) -> bool:
    step = place - run[-1][1]
    return step in (0, 1) and (len(run) == 1 or step == run[-1][1] - run[-2][1])


def _run_words(run: list[tuple[int, int]]) -> str:
    (first, start), (last, stop) = run[0], run[-1]
    if first == last:
        return f"token {first} at position {start}"
    places = f"position {start}" if start == stop else f"positions {start} to {stop}"
    return f"tokens {first} to {last} at {places}"
