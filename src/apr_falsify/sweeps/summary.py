"""What a sweep found: the matrix of models and subjects, what is new, and what does not repeat itself."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apr_falsify.errors import ExitCode, SweepError
from apr_falsify.reading import items, mapping, text
from apr_falsify.sweeps.job import Job
from apr_falsify.sweeps.runs import JobResult, Runs

REPORT_SCHEMA = "apr-falsify/sweep-report/v1"

NOT_RUN = "not run"

_WORST_FIRST = (
    ExitCode.DIVERGENCE,
    ExitCode.INTERNAL,
    ExitCode.USAGE,
    ExitCode.INCONCLUSIVE,
    ExitCode.OK,
)
"""What a sweep exits with is the first of these that one of its jobs has."""


def worst(codes: Iterable[int]) -> ExitCode:
    """Return the worst of some exit codes; of none, that nothing was measured."""
    found = {ExitCode(code) for code in codes}
    return next((code for code in _WORST_FIRST if code in found), ExitCode.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """A job with what came of it.

    Attributes:
        job: the job.
        result: what came of it, ``None`` where it has not run.

    """

    job: Job
    result: JobResult | None

    @property
    def word(self) -> str:
        """The headline of its bisection, else how it ended."""
        if self.result is None:
            return NOT_RUN
        found = self.result.bisection
        return self.result.ended.value if found is None else str(found.get("kind"))

    @property
    def exit_code(self) -> ExitCode:
        """What its process said; a job that has not run measured nothing."""
        return ExitCode.INCONCLUSIVE if self.result is None else ExitCode(self.result.exit_code)

    @property
    def sources(self) -> tuple[str, ...]:
        """The stages that introduced an error, as ``layer 1 qkv_bias``, the largest first."""
        held = self.result.bisection if self.result is not None else None
        found = [] if held is None else sorted(held.get("sources", ()), key=_size, reverse=True)
        return tuple(f"{_layer(one)}{' '.join(one.get('stages', ()))}" for one in found)

    @property
    def says(self) -> str:
        """One sentence of what is wrong, empty where nothing is."""
        if self.result is None or self.result.bisection is None:
            return "" if self.result is None else self.result.message
        held = self.result.bisection
        found = sorted(held.get("sources", ()), key=_size, reverse=True) or held.get("findings", ())
        return str(found[0].get("explanation", "")) if found else ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        ran = self.result
        return {
            "id": self.job.id,
            "axes": dict(self.job.axes),
            "command": self.job.command,
            "says": self.says,
            "word": self.word,
            "exit_code": int(self.exit_code),
            "sources": list(self.sources),
            "seconds": None if ran is None else ran.seconds,
            "peak": None if ran is None else ran.peak,
            "version": None if ran is None else ran.version,
        }


def _size(source: Mapping[str, Any]) -> float:
    size = source.get("size")
    return float(size) if isinstance(size, int | float) else float("inf")


def _layer(source: Mapping[str, Any]) -> str:
    return "" if source.get("layer") is None else f"layer {source['layer']} "


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """All jobs of one model and one subject.

    Attributes:
        model: the model's name.
        subject: the subject's name.
        outcomes: of its jobs.
        flaky: ids of jobs that did not come out the same each time.
        new: ids of jobs that came out otherwise in the last report, or were not in it.

    """

    model: str
    subject: str
    outcomes: tuple[JobOutcome, ...]
    flaky: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The worst of its jobs."""
        return worst(one.exit_code for one in self.outcomes)

    @property
    def worst(self) -> JobOutcome:
        """The first job that is as bad as the cell."""
        return next(one for one in self.outcomes if one.exit_code is self.exit_code)

    @property
    def counts(self) -> Mapping[str, int]:
        """Word -> of how many jobs it is."""
        return Counter(one.word for one in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "model": self.model,
            "subject": self.subject,
            "word": self.worst.word,
            "exit_code": int(self.exit_code),
            "counts": dict(self.counts),
            "sources": list(self.worst.sources),
            "flaky": list(self.flaky),
            "new": list(self.new),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a sweep found.

    Attributes:
        name: of the sweep.
        outcomes: of all jobs.
        earlier: id -> word and sources of the last report; ``None`` where none was given.

    """

    name: str
    outcomes: tuple[JobOutcome, ...]
    earlier: Mapping[str, tuple[str, tuple[str, ...]]] | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> ExitCode:
        """The worst of all jobs."""
        return worst(one.exit_code for one in self.outcomes)

    @property
    def cells(self) -> tuple[MatrixCell, ...]:
        """The matrix, model by model in the order of the sweep."""
        groups: dict[tuple[str, str], list[JobOutcome]] = {}
        for one in self.outcomes:
            groups.setdefault((one.job.axes["model"], one.job.axes["subject"]), []).append(one)
        return tuple(
            MatrixCell(
                model=model,
                subject=subject,
                outcomes=tuple(found),
                flaky=_flaky(found),
                new=tuple(one.job.id for one in found if self._is_new(one)),
            )
            for (model, subject), found in groups.items()
        )

    def _is_new(self, one: JobOutcome) -> bool:
        return self.earlier is not None and self.earlier.get(one.job.id) != (one.word, one.sources)

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of apr-falsify that ran its jobs."""
        return tuple(sorted({one.result.version for one in self.outcomes if one.result is not None}))

    def to_json(self) -> dict[str, Any]:
        """Return the object of schema ``apr-falsify/sweep-report/v1``."""
        return {
            "schema": REPORT_SCHEMA,
            "name": self.name,
            "exit_code": int(self.exit_code),
            "counts": dict(Counter(one.word for one in self.outcomes)),
            "versions": list(self.versions),
            "compared_with_an_earlier_report": self.earlier is not None,
            "matrix": [cell.to_json() for cell in self.cells],
            "jobs": [one.to_json() for one in self.outcomes],
        }


def _flaky(outcomes: Sequence[JobOutcome]) -> tuple[str, ...]:
    """Return the ids of jobs that ran more than once, and did not come out alike."""

    def same(one: JobOutcome) -> tuple[str, ...]:
        return tuple(name for axis, name in one.job.axes.items() if axis != "repeat")

    ran = sorted((one for one in outcomes if one.result is not None), key=same)
    groups = [list(group) for _, group in itertools.groupby(ran, key=same)]
    return tuple(group[0].job.id for group in groups if len({(one.word, one.sources) for one in group}) > 1)


def summary_of(
    runs: Sequence[Runs], *, earlier: Mapping[str, Any] | None = None, mixed: bool = False
) -> Summary:
    """Read the runs of one sweep, from the directories in which its jobs ran.

    Args:
        runs: the directories.
        earlier: the JSON of the last report.
        mixed: allow runs of several versions of apr-falsify.

    Raises:
        SweepError: no sweep lies there, they are of several sweeps or of several versions, or a file that is
            not as it was written.

    """
    names: dict[str, None] = {}
    jobs: dict[str, Job] = {}
    found: dict[str, list[JobOutcome]] = {}
    for each in runs:
        name, planned = each.read_plan()
        names[name] = None
        for job in planned:
            if jobs.setdefault(job.id, job).sha256 != job.sha256:
                raise SweepError(
                    f"the job {job.id} is another one than in the directories before",
                    where=each.folder,
                    remedy="report on directories of one sweep file",
                )
            result = each.get(job)
            if result is not None:
                found.setdefault(job.id, []).append(JobOutcome(job=job, result=result))
    if len(names) > 1:
        raise SweepError(
            f"the runs of several sweeps: {', '.join(names)}",
            where=runs[0].folder,
            remedy="report on one sweep at a time",
        )
    outcomes = [one for job in jobs.values() for one in found.get(job.id, [JobOutcome(job=job, result=None)])]
    summary = Summary(
        name=", ".join(names),
        outcomes=tuple(outcomes),
        earlier=None if earlier is None else _earlier(earlier),
    )
    if len(summary.versions) > 1 and not mixed:
        raise SweepError(
            f"its jobs were run by several versions: {', '.join(summary.versions)}",
            where=runs[0].folder,
            remedy="run the older ones again, or say --mixed-versions",
        )
    return summary


def _earlier(data: Mapping[str, Any]) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Read what is compared of an earlier report.

    Raises:
        SweepError: it is none.

    """
    try:
        if data.get("schema") != REPORT_SCHEMA:
            raise ValueError(f"schema is {data.get('schema')!r}, not {REPORT_SCHEMA!r}")
        found = [mapping(one, "jobs") for one in items(data.get("jobs"), "jobs")]
        return {
            text(one.get("id"), "id"): (
                text(one.get("word"), "word"),
                tuple(text(each, "sources") for each in items(one.get("sources"), "sources")),
            )
            for one in found
        }
    except ValueError as error:
        raise SweepError(f"is no report of a sweep: {error}", where="--since") from error
