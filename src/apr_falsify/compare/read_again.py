"""A run read again as the findings of its bisection say, without judging it anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from apr_falsify.compare.bisection import FindingType
from apr_falsify.compare.convention import stored_as
from apr_falsify.compare.conventions import CONVENTIONS
from apr_falsify.compare.stored_format import StoredRun, as_stated
from apr_falsify.formats.weights import Weights
from apr_falsify.traces.trace import Trace


class FindingLike(Protocol):
    """A finding, of a bisection in memory or of one that was read from a file."""

    @property
    def type(self) -> FindingType:
        """What it is about."""

    @property
    def explanation(self) -> str:
        """What was seen; what a run holds otherwise stands before the first colon."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages concerned."""


def read_again(trace: Trace, weights: Weights | None, findings: Iterable[FindingLike]) -> StoredRun:
    """Return a run in the layout and the formats that ``findings`` name; others of them are passed over."""
    names = {one.name: one for one in CONVENTIONS}
    run = StoredRun(trace=trace, weights=weights)
    for finding in findings:
        name = finding.explanation.partition(":")[0]
        if finding.type in (FindingType.LAYOUT, FindingType.RECORDING) and name in names:
            changed = stored_as(run.trace, [names[name]])
            run = run if changed is None else StoredRun(trace=changed, weights=run.weights)
        elif finding.type is FindingType.RECORDING:
            run = as_stated(run, name, finding.stages)
    return run
