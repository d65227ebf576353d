"""One case, all the way: captured to files, read back, compared with the oracle's cached capture, scored."""

from __future__ import annotations

import math
import shutil
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import error_line
from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.replay import Missing, Replayer
from apr_falsify.compare.structure import consumers, descendants
from apr_falsify.errors import AprFalsifyError
from apr_falsify.exam.cases import ExamCase, ExamRun, Host
from apr_falsify.exam.grades import Answer, Grade, explained, grade_of, published_grade
from apr_falsify.exam.material import Material
from apr_falsify.exam.phases import PHASES
from apr_falsify.exam.store import Store
from apr_falsify.model.stages import APR_STAGES, Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from apr_falsify.traces.trace import Trace, read_trace

F64 = npt.NDArray[np.float64]

COUNTS_FROM = 10.0
"""A fault counts from this many floors; below it is the detection curve."""

_BYTES_KEPT = 200 << 20
"""How many bytes of the oracle's traces stay in memory; most take a tenth of a megabyte to a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """What came of one case.

    Attributes:
        case: the case.
        grade: of the whole answer; of a correct run, ``located`` where nothing was accused.
        published: of the published rule's answer.
        explained: whether a right source's explanation says what was wrong.
        level: how many floors the fault changes its stage by; the least of several faults.
        required: the stages that had to be named.
        found: the stages that were.
        said: the explanations.
        right: the excess of every stage that is right: how near each came to its floor.
        guilty: the excess of every stage that had to be named.

    """

    case: ExamCase
    grade: Grade
    published: Grade
    explained: bool
    level: float
    required: tuple[Key, ...]
    found: tuple[Key, ...]
    said: tuple[str, ...]
    right: tuple[float, ...] = ()
    guilty: tuple[float, ...] = ()


CaptureOracle = Callable[[Material, Request, Path], Trace]
"""Captures the oracle into a directory."""


class Examiner:
    """Runs trials in one process, with everything cached that several of them need.

    Args:
        store: where the models are.
        hosts: name -> host.
        oracle: captures the oracle.
        directory: where traces are written; each subject's is removed when it is judged.

    """

    def __init__(
        self, store: Store, hosts: Mapping[str, Host], oracle: CaptureOracle, directory: Path
    ) -> None:
        self.store, self.hosts = store, hosts
        self._oracle, self._directory = oracle, directory
        self._oracles: OrderedDict[tuple[Hashable, ...], Trace] = OrderedDict()
        self._sound: dict[tuple[Hashable, ...], Trace] = {}
        self._count = 0

    def trial(self, case: ExamCase) -> TrialOutcome:
        """Run ``case`` and judge what the comparison says of it."""
        host = self.hosts[case.host]
        request = self._request(case)
        self._let_go(case.material)
        try:
            directory, ran = self._captured(host, case, request)
        except AprFalsifyError as error:  # a foreign program that fails has failed this trial, not the exam
            return broken_down(case, "the run", error_line(error))
        try:
            oracle = self._oracle_trace(case, request)
            weights = self.store.model(case.reference).weights
            seen = PHASES[case.phase].seen(ran.trace)
            try:
                result = bisect(oracle, seen, weights=weights, subject_weights=ran.own_weights)
            except Exception as error:  # a comparison that breaks down has failed this trial, not the exam
                return broken_down(case, "the comparison", error_line(error))
            if result.breakdowns:  # what is caught within it costs no verdict, but passes no exam
                first = result.breakdowns[0]
                return broken_down(case, first.what, first.error)
            return self._outcome(case, ran, result)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _request(self, case: ExamCase) -> Request:
        layers = min(self.store.model(case.material).geometry.layers, 3)
        tokens = self.hosts[case.host].fixed_tokens or case.tokens
        return Request(tokens=tokens, layers=range(layers), stages=APR_STAGES, in_passes=case.in_passes)

    def _captured(self, host: Host, case: ExamCase, request: Request) -> tuple[Path, ExamRun]:
        self._count += 1
        directory = self._directory / f"subject-{self._count}"
        with TraceWriter(directory) as writer:
            ran = host.run(self.store, case, request, writer)
        batch = {1: ran.batch} if ran.batch else {}
        return directory, replace(ran, trace=replace(read_trace(directory), batch=batch))

    def _oracle_trace(self, case: ExamCase, request: Request) -> Trace:
        material = case.reference
        if case.host == "torch":  # which has the oracle's cache: the oracle shall have none
            request = _without_cache(request)
        key = (material, request.tokens, request.in_passes)
        if key not in self._oracles:
            self._count += 1
            directory = self._directory / f"oracle-{self._count}"
            self._oracle(material, request, directory)
            self._oracles[key] = _in_memory(read_trace(directory))
            shutil.rmtree(directory)
        self._oracles.move_to_end(key)
        while len(self._oracles) > 1 and sum(map(_bytes, self._oracles.values())) > _BYTES_KEPT:
            self._oracles.popitem(last=False)
        return self._oracles[key]

    def _let_go(self, kept: Material) -> None:
        """Forget wide models that are not ``kept``, and what was run on them: one is in memory at a time."""
        self.store.drop_wide(kept)
        for cache in (self._oracles, self._sound):
            for key in [key for key in cache if any(_is_other(part, kept) for part in key)]:
                del cache[key]

    def _outcome(self, case: ExamCase, ran: ExamRun, result: Bisection) -> TrialOutcome:
        geometry = ran.trace.geometry
        wrong = [set(seeded.truth(geometry)) & ran.trace.stages.keys() for seeded in case.seeded]
        levels = [self._levels(case, index, keys, ran) for index, keys in enumerate(wrong)]
        truth = {key for keys in wrong for key in keys}
        required = {key for each in levels for key, level in each.items() if level >= COUNTS_FROM}
        answer = Answer.of(result, truth, arithmetic=case.judges_arithmetic)
        excess = {(row.layer, row.stage): row.excess for row in result.rows if row.excess is not None}
        return TrialOutcome(
            case=case,
            grade=grade_of(required, truth, set(answer.found)),
            published=published_grade(result, wrong),
            explained=explained(case, answer, truth),
            level=min((max(each.values(), default=0.0) for each in levels), default=0.0),
            required=tuple(required),
            found=answer.found,
            said=answer.said,
            right=tuple(value for key, value in excess.items() if key not in truth),
            guilty=tuple(value for key, value in excess.items() if key in required),
        )

    def _levels(self, case: ExamCase, index: int, keys: set[Key], ran: ExamRun) -> dict[Key, float]:
        """Return by how many floors one of the case's faults changes its stages.

        Where the host does not know what it should have made, the run is compared with one without this
        fault, in those stages that no other stage of this fault feeds.
        """
        if ran.changes is not None:
            changes = {key: change for key, change in ran.changes.items() if key in keys}
        else:
            without = replace(case, seeded=case.seeded[:index] + case.seeded[index + 1 :])
            changes = self._against(without, keys, ran.trace)
        replayer = Replayer(ran.trace, self.store.model(case.material).weights, case.setting.unit_roundoff)
        phase, passes = PHASES[case.phase], ran.trace.passes
        return {
            key: level_of(np.where(phase.data(key, passes), change, 0.0), replayer, key)
            for key, change in changes.items()
        }

    def _against(self, case: ExamCase, keys: set[Key], trace: Trace) -> dict[Key, F64]:
        other = self._reference(case)
        first = keys - descendants(keys, consumers(trace.stages, trace.geometry))
        return {
            key: np.abs(trace.stages[key].data.astype(np.float64) - other.stages[key].data) for key in first
        }

    def _reference(self, case: ExamCase) -> Trace:
        request = self._request(case)
        key = (case.host, case.material, case.setting.name, request.tokens, case.phase)
        if case.seeded or key not in self._sound:
            trace = self.hosts[case.host].run(self.store, case, request, MemorySink()).trace
            if case.seeded:
                return trace
            self._sound[key] = trace
        return self._sound[key]


def _without_cache(request: Request) -> Request:
    """Return the same run in one pass."""
    passes = request.passes
    whole = replace(passes, sizes=(passes.tokens,))
    return replace(request, in_passes=None if whole.plain else whole)


def _is_other(part: object, kept: Material) -> bool:
    return isinstance(part, Material) and part.wide and part != kept


def _bytes(trace: Trace) -> int:
    return sum(array.data.nbytes for array in trace.stages.values())


def _in_memory(trace: Trace) -> Trace:
    """Return ``trace`` without its files: each map of one keeps a file open, and there are many."""
    stages = {key: replace(array, data=np.array(array.data)) for key, array in trace.stages.items()}
    return replace(trace, stages=stages, path=None)


def broken_down(case: ExamCase, what: str, error: str) -> TrialOutcome:
    """Return the outcome of a case of which ``what`` (its run, its comparison) failed with ``error``."""
    return TrialOutcome(
        case=case,
        grade=Grade.WRONG,
        published=Grade.WRONG,
        explained=False,
        level=math.inf,
        required=(),
        found=(),
        said=(f"{what} broke down: {error}",),
    )


def level_of(change: F64, replayer: Replayer, key: Key) -> float:
    """Return the largest ratio of ``change`` to the stage's floor."""
    found = replayer.replay(key, (PLAIN,))
    if isinstance(found, Missing):
        return 0.0
    sigma = found.sigma[-len(change) :] if found.sigma.shape != change.shape else found.sigma
    moved = change.reshape(sigma.shape)
    with np.errstate(divide="ignore"):
        ratio = np.where(moved == 0, 0.0, np.nan_to_num(moved / np.where(moved == 0, 1.0, sigma), nan=np.inf))
    return float(np.max(ratio)) / LIMIT
