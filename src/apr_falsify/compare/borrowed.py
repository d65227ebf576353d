"""What a recording lacks of its own run and takes from the oracle's, or leaves out beside it.

A decode step that was recorded alone read keys and values of earlier passes which nobody kept. They are taken
from the oracle's run of the same tokens, as uncertain as the recorded rows are far from the oracle's. And an
oracle that was captured without padding is compared with a padded row without its padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.layout import canonical
from apr_falsify.errors import TraceError
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import SQUARES, STAGES, Key, Layout
from apr_falsify.operators.roundoff import Known
from apr_falsify.traces.trace import Borrowed, StageArray, Trace

F64 = npt.NDArray[np.float64]

CACHED = ("k_post_rope", "qkv_bias", "qkv_matmul")
"""The stages of which a later pass reads what earlier passes left."""

_MARGIN = 4.0
"""How many times the difference of the recorded rows the rows that were taken may be off."""


def with_earlier_rows(subject: Trace, oracle: Trace) -> Trace:
    """Return ``subject`` with the oracle's keys and values of the tokens that were not recorded."""
    unseen = subject.passes.unseen
    if not unseen or oracle.passes.unseen or oracle.tokens != subject.tokens:
        return subject
    found: dict[Key, Borrowed] = {}
    for key in subject.stages:
        if key.stage in CACHED and key in oracle.stages:
            try:
                found[key] = _borrowed(key, subject, oracle)
            except TraceError:
                continue  # of another size: the comparison tells
    return replace(subject, borrowed=found)


def _borrowed(key: Key, subject: Trace, oracle: Trace) -> Borrowed:
    ours = canonical(oracle.stages[key], key, oracle.geometry, oracle.passes).astype(np.float64)
    theirs = canonical(subject.stages[key], key, subject.geometry, subject.passes).astype(np.float64)
    if theirs.shape != ours[subject.passes.unseen :].shape:
        raise TraceError("another size than the oracle's", where=key.stage)
    apart = theirs - ours[subject.passes.unseen :]
    finite = apart[np.isfinite(apart)]
    off = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else np.inf
    return Borrowed(values=ours[: subject.passes.unseen], sigma=_MARGIN * off)


def with_uncertain_steps(known: Known, held: Callable[[F64], F64]) -> Known:
    """Return an operand with what its uncertainty becomes where it is held in few bits.

    A value near an edge between two steps, which may lie on either side of it, is uncertain by a whole step,
    however little it is uncertain itself. A step to infinity, beyond what the format holds, is none.

    Args:
        known: the operand, [tokens, channels], as it was taken.
        held: what is left of it.

    """
    if known.sigma is None or not np.any(known.sigma):
        return known
    sigma = np.broadcast_to(known.sigma, known.value.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = held(known.value)
        found = sigma
        for side in _directions(known.value.shape[-1]):
            step = np.abs(held(known.value + side * sigma) - middle)
            found = np.where(np.isfinite(step), np.fmax(found, step), found)
    return Known(value=known.value, sigma=found)


def _directions(channels: int) -> Iterator[F64]:
    """Yield directions in which channels may be off: all alike, and any two of 32 neighbours apart.

    A value that moves as the largest of its block does keeps its step.
    """
    for size in (0, 1, 2, 4, 8, 16):
        side = np.where(np.arange(channels) & size, -1.0, 1.0)
        yield from (side, -side)


def without_padding(trace: Trace) -> Trace:
    """Return a trace without the rows and the keys of its padding."""
    passes = trace.passes
    pads = passes.padding
    stages = {}
    for key, array in trace.stages.items():
        values = canonical(array, key, trace.geometry, passes)
        axes = STAGES[key.stage].axes
        if "tokens" in axes and Layout.LAST_TOKEN not in array.layout:
            values = values.take(range(pads, passes.tokens), axes.index("tokens"))
        if key.stage in SQUARES:
            values = values[..., pads:]
        kept = tuple(word for word in array.layout if word in _STILL)
        stages[key] = StageArray(data=values, layout=kept)
    first, *others = passes.sizes
    own = Passes(sizes=(first - pads, *others), positions=tuple(int(at) for at in passes.at[pads:]))
    return replace(trace, tokens=trace.tokens[pads:], stages=stages, in_passes=None if own.plain else own)


_STILL = (Layout.CAUSAL_ZEROED, Layout.VISIBLE_ONLY, Layout.LAST_TOKEN)
"""Words that hold of a stage in canonical shape too: what was not stored is not there."""
