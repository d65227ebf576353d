"""What people's falsifiers say: a bisection that refutes a prediction, and one that measured nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import NoReturn

from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Row, Status, Verdict
from apr_falsify.compare.published import PublishedRule

UNMEASURED = "unmeasured: "
"""How the reason of a skip begins where a prediction could not be judged."""

Record = Callable[[str, object], None]
"""pytest's ``record_property``."""


class Falsified(AssertionError):
    """A prediction that a bisection refutes.

    pytest prints the stage table and the findings in place of a difference of Python values.

    Args:
        sentence: what was predicted and what was found.
        bisection: the bisection.

    """

    def __init__(self, sentence: str, bisection: Bisection) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.bisection = bisection

    def report(self) -> str:
        """Return what a reader needs: the sentence, the stage table, the findings."""
        return f"{self.sentence}\n\n{printed(self.bisection)}"


def printed(bisection: Bisection) -> str:
    """Return a bisection as ``apr-falsify bisect`` prints it, without colours."""
    from rich.console import Console

    from apr_falsify.commands.output import WIDTH
    from apr_falsify.commands.report import print_text

    text = io.StringIO()
    print_text(bisection, Console(file=text, width=WIDTH, highlight=False))
    return text.getvalue().rstrip("\n")


def unmeasured(reason: str) -> NoReturn:
    """End a test as not run: what it predicts could not be judged."""
    import pytest  # who compares in a program of their own need not have it

    pytest.skip(UNMEASURED + " ".join(reason.split()))


def located(bisection: Bisection, stages: Sequence[str], layer: int) -> tuple[str, ...]:
    """Return the stages among ``stages`` of ``layer`` that a source names; a span names several."""
    named = {name for source in bisection.sources if source.layer == layer for name in source.stages}
    return tuple(name for name in stages if name in named)


def assert_one_source(
    bisection: Bisection, stages: Sequence[str], layer: int, record: Record | None = None
) -> str:
    """Return the one stage among ``stages`` of ``layer`` that introduces an error.

    Args:
        bisection: the bisection of a subject.
        stages: the chain that the prediction speaks of.
        layer: its layer.
        record: where the cosines of the chain and the number of crossings are stored beside the answer.

    Raises:
        Falsified: no stage, or several, or a span that cannot be narrowed to one.

    The test ends as not run (``unmeasured``) where a stage of the chain is absent or could not be judged, and
    where the reference fails its own replay.

    """
    rows = {row.stage: row for row in bisection.rows if row.layer == layer and row.stage in stages}
    if record is not None:
        keep_published(bisection, rows, stages, layer, record)
    _check_measured(bisection, rows, stages, layer)
    found = located(bisection, stages, layer)
    if len(found) == 1:
        if record is not None:
            record("source", found[0])
        return found[0]
    said = ", ".join(found) or "none"
    raise Falsified(
        f"predicted: exactly one of {len(stages)} stages of layer {layer} introduces an error; found: {said}",
        bisection,
    )


def _check_measured(bisection: Bisection, rows: dict[str, Row], stages: Sequence[str], layer: int) -> None:
    if bisection.kind is Kind.REFERENCE_SUSPECT:
        suspect = [one for one in bisection.findings if one.type is FindingType.REFERENCE]
        unmeasured("the reference fails its own replay: " + "; ".join(one.explanation for one in suspect))
    absent = [name for name in stages if name not in rows or rows[name].status in _ABSENT]
    if absent:
        unmeasured(f"layer {layer} lacks {', '.join(absent)}")
    named = set(located(bisection, stages, layer))
    unjudged = [name for name in stages if rows[name].verdict is Verdict.UNMEASURED and name not in named]
    if unjudged:
        unmeasured(f"layer {layer}: {', '.join(unjudged)} could not be judged")
    for finding in bisection.findings:
        concerned = finding.layer in (None, layer) and (
            not finding.stages or set(finding.stages) & set(stages) - named
        )
        if finding.type in _UNJUDGED and concerned:
            unmeasured(finding.explanation)


_UNJUDGED = (FindingType.UNMEASURED, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
_ABSENT = (Status.MISSING_IN_SUBJECT, Status.MISSING_IN_ORACLE, Status.NOT_REQUESTED, Status.NOT_APPLICABLE)


def keep_published(
    bisection: Bisection, rows: dict[str, Row], stages: Sequence[str], layer: int, record: Record
) -> None:
    """Keep the cosine of each stage, and the published rule's crossings, as properties of the test."""
    for name in stages:
        metrics = rows[name].accumulated if name in rows else None
        record(f"cosine.{name}", "unmeasured" if metrics is None else f"{metrics.cosine:.9f}")
    rule: PublishedRule | None = next((one for one in bisection.published if one.layer == layer), None)
    crossings = () if rule is None else rule.crossings
    record("crossings", str(len(crossings)))
    for before, after in crossings:
        record("crossing", f"{before} -> {after}")
