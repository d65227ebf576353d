"""Both sides of a lane, captured once a session, whichever process comes first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.commands.lanes import Lane
from apr_falsify.pytest_plugin.shared import Shared, locked

if TYPE_CHECKING:
    from apr_falsify.compare.bisection import Bisection
    from apr_falsify.traces.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a lane gave.

    Attributes:
        lane: the lane.
        directory: the run: both traces.
        oracle: the oracle's trace.
        subject: the subject's trace.
        bisection: what comparing them says.

    """

    lane: Lane
    directory: Path
    oracle: Trace
    subject: Trace
    bisection: Bisection


class Measurements:
    """Measures each lane once.

    Args:
        shared: the session's folder; the processes of a session find each other's captures there.

    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._found: dict[str, Measured | Exception] = {}

    def run_of(self, lane: Lane) -> Path:
        """Return where the traces of ``lane`` lie once they are captured, with bisection.json."""
        return self._shared.path / "lanes" / re.sub(r"[^\w.-]", "_", lane.name)

    def of(self, lane: Lane) -> Measured:
        """Return what ``lane`` gives.

        Raises:
            AprFalsifyError: a side that cannot be captured, or sides that cannot be compared; the same error
                again whenever this process asks again.

        """
        if lane.name not in self._found:
            try:
                self._found[lane.name] = self._measured(lane)
            except Exception as error:  # stored as it is, to be raised for each test that requests it
                self._found[lane.name] = error
        found = self._found[lane.name]
        if isinstance(found, Exception):
            raise found
        return found

    def _measured(self, lane: Lane) -> Measured:
        from apr_falsify.commands.report import write_bisection
        from apr_falsify.commands.sides import capture_sides, make_plan
        from apr_falsify.compare.localise import bisect
        from apr_falsify.model.stages import STAGES

        run = self.run_of(lane)
        # A trace appears under its name whole or not at all, so what a killed or failed capture left is not
        # taken for one; the lock keeps two processes from capturing at once.
        with (
            locked(run.with_suffix(".lock")),
            make_plan(
                lane.oracle,
                lane.subject,
                layers=lane.layers,
                stages=tuple(STAGES),
                substages=True,
                prompt=lane.prompt,
                tokens=lane.tokens,
                arithmetic=None,
                earlier=run / "subject",
            ) as plan,
        ):
            oracle, subject = capture_sides(plan, dtype=lane.dtype, device=lane.device, run=run)
            own = plan.subject.model
            bisection = bisect(
                oracle,
                subject,
                weights=None if plan.oracle.model is None else plan.oracle.model.weights,
                subject_weights=None if own is None else own.weights,
                layers=plan.judged,
                stages=plan.request.stages,
                findings=plan.findings,
                not_checked=plan.not_checked,
            )
            write_bisection(bisection, run)
        return Measured(lane=lane, directory=run, oracle=oracle, subject=subject, bisection=bisection)
