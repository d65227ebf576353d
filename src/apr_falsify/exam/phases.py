"""How the exam's runs compute their tokens: at once, token by token, in chunks, padded, or a step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import SQUARES, STAGES, Key, Layout
from apr_falsify.traces.trace import Trace

AT_ONCE = "at once"
PADDING = 3
"""Tokens of padding before a padded row."""

FIRST_POSITION = 7
"""Where a text begins that goes on after another one."""

SHORTEST = 8
"""Fewer tokens have not all of these phases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A way to compute a sequence.

    Attributes:
        name: what tables call it.
        lay: gives the passes of so many tokens.
        last_alone: whether only the last pass is recorded.

    """

    name: str
    lay: Callable[[int], Passes]
    last_alone: bool = False

    def passes(self, tokens: int) -> Passes | None:
        """Return the passes of a run of ``tokens`` tokens, ``None`` where it is plain."""
        passes = self.lay(tokens)
        return None if passes.plain else passes

    def seen(self, trace: Trace) -> Trace:
        """Return what is recorded of a run."""
        return last_pass(trace) if self.last_alone else trace

    def data(self, key: Key, passes: Passes) -> np.typing.NDArray[np.bool_]:
        """Return which values of a stage are recorded data, in a shape that broadcasts to the stage's."""
        rows = passes.rows_held()
        if self.last_alone:
            rows &= np.arange(passes.tokens) >= passes.starts[-1]
        if key.stage in SQUARES:
            return np.asarray(passes.weighted() & rows[:, None])
        if STAGES[key.stage].axes[0] == "tokens":
            return rows[:, None]
        return np.ones((), dtype=np.bool_)


def last_pass(trace: Trace) -> Trace:
    """Return the last pass of a run alone, as where nobody recorded the others."""
    passes = trace.passes
    first = passes.starts[-1]
    stages = {}
    for key, array in trace.stages.items():
        axes, values = STAGES[key.stage].axes, array.data
        if "tokens" in axes and Layout.LAST_TOKEN not in array.layout:
            values = values.take(range(first, passes.tokens), axes.index("tokens"))
        stages[key] = replace(array, data=values)
    return replace(trace, stages=stages, path=None, in_passes=replace(passes, unseen=first))


def _steps(tokens: int, steps: int, padding: int = 0) -> Passes:
    return Passes(sizes=(tokens - steps, *(1,) * steps), padding=padding)


def _chunks(tokens: int, *, steps: int = 0, padding: int = 0) -> Passes:
    """Return chunks of which the last one is shorter, then single tokens."""
    rest = tokens - steps
    size = max(3, rest * 2 // 5)
    sizes = [min(size, rest - start) for start in range(0, rest, size)]
    return Passes(sizes=(*sizes, *(1,) * steps), padding=padding)


def _placed(tokens: int) -> Passes:
    return Passes(sizes=(tokens,), positions=tuple(range(FIRST_POSITION, FIRST_POSITION + tokens)))


PHASES: Mapping[str, Phase] = {
    phase.name: phase
    for phase in (
        Phase(name=AT_ONCE, lay=Passes.whole),
        Phase(name="decode", lay=lambda tokens: _steps(tokens, 3)),
        Phase(name="chunks", lay=_chunks),
        Phase(name="chunks and decode", lay=lambda tokens: _chunks(tokens, steps=2)),
        Phase(name="left padding", lay=lambda tokens: _steps(tokens, 0, PADDING)),
        Phase(name="left padding and decode", lay=lambda tokens: _steps(tokens, 2, PADDING)),
        Phase(name="left padding in chunks", lay=lambda tokens: _chunks(tokens, padding=PADDING - 1)),
        Phase(name="other positions", lay=_placed),
        Phase(name="the last step alone", lay=lambda tokens: _steps(tokens, 3), last_alone=True),
    )
}
"""Name -> phase."""

DECODE = ("decode", "chunks and decode", "left padding and decode", "the last step alone")
"""Phases that end token by token."""

CHUNKS = ("chunks", "left padding in chunks", "chunks and decode")
"""Phases whose later passes are of several tokens."""

CACHED = ("decode", "chunks", "chunks and decode", "left padding and decode", "left padding in chunks")
"""Phases of several passes, all of which are recorded."""

PADDED = ("left padding", "left padding and decode", "left padding in chunks")
"""Phases of a padded row."""
