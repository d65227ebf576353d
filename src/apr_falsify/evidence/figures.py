"""Compute the figures of a bisection again: what a bundle's own files show, what weights show, what is left.

A figure is ``recomputed`` where it follows from the stage files, ``attested`` where it does not: then it is
what the machine reported that measured it. Sums differ in their last digits from machine to machine, which
:data:`SAME` allows for; a replayed stage is the difference of nearly equal values, which :data:`NEAR` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from apr_falsify.compare.bisection import (
    SCHEMA,
    Bisection,
    Finding,
    FindingType,
    Row,
    Status,
    Verdict,
    root_causes,
)
from apr_falsify.compare.layout import aligned
from apr_falsify.compare.localise import bisect, kind_of
from apr_falsify.compare.metrics import compare_arrays
from apr_falsify.compare.published import published_rule
from apr_falsify.compare.read_again import read_again
from apr_falsify.compare.structure import same_shapes
from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.files import REPLAY_DIFFERS, BundleProblem
from apr_falsify.evidence.traces import SideTrace, as_problem
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.reading import flag, items, mapping, text, whole
from apr_falsify.traces.trace import Trace

SAME = (1e-9, 1e-12)
"""Relative and absolute difference of one figure summed twice over the same values."""

NEAR = (1e-3, 1e-9)
"""The same for a figure of a replay."""


@dataclass(slots=True, kw_only=True)
class Count:
    """What became of the figures; filled while they are looked at.

    Attributes:
        recomputed: figures that were computed again and are as the bundle says.
        attested: figures that only the machine that measured them vouches for.
        problems: figures that are not as the bundle says.

    """

    recomputed: list[str] = field(default_factory=list)
    attested: list[str] = field(default_factory=list)
    problems: list[BundleProblem] = field(default_factory=list)


def check_bisection(
    data: object,
    file: str,
    sides: tuple[SideTrace, SideTrace] | None,
    weights: tuple[Weights | None, Weights | None] = (None, None),
) -> Count:
    """Compute again what can be of a bisection.

    Args:
        data: the object of schema ``apr-falsify/bisection/v1``.
        file: its name in the bundle.
        sides: the traces of the oracle and of the subject; ``None`` where the bundle holds none for it.
        weights: the oracle's and the subject's own, as ``bisect`` takes them.

    """
    count = Count()
    try:
        found = mapping(data, "it")
        if found.get("schema") != SCHEMA:
            message = f"its schema is {found.get('schema')!r:.80}, not {SCHEMA!r}"
            count.problems.append(BundleProblem(code="newer-version", file=file, message=message))
            return count
        rows = [_row(one) for one in items(found.get("stages"), "stages")]
        findings = [_finding(one) for one in items(found.get("findings"), "findings")]
        _derived(found, file, rows, findings, count)
        if sides is not None:
            _provenance(found, file, sides, count)
        _accumulated(file, rows, _solved(sides, findings), count)
        _replayed(file, rows, findings, sides, weights, count)
    except (ValueError, KeyError, TypeError) as error:
        message = f"holds an unusable value: {error}"
        count.problems.append(BundleProblem(code="bad-bisection", file=file, message=message))
    except AprFalsifyError as error:
        count.problems.append(as_problem(error, "bad-bisection", file))
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One stage of the JSON, with the values that are looked at."""

    key: Key
    row: Row
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        layer, stage = self.key
        return stage if layer is None else f"layer {layer} {stage}"

    @property
    def cosine(self) -> float | None:
        found = self.data["accumulated"]
        return None if found is None else mapping(found, "accumulated")["cosine"]


def _row(value: object) -> _Row:
    data = mapping(value, "a stage")
    layer = data["layer"]
    key = Key(None if layer is None else whole(layer, "a layer"), text(data["stage"], "a stage's name"))
    if key.stage not in STAGES:
        raise ValueError(f"the stage {key.stage!r:.80} is not of the table")
    status, verdict = Status(text(data["status"], "status")), Verdict(text(data["verdict"], "verdict"))
    return _Row(key=key, row=Row(layer=key.layer, stage=key.stage, status=status, verdict=verdict), data=data)


def _finding(value: object) -> Finding:
    data = mapping(value, "a finding")
    layer = data.get("layer")
    return Finding(
        type=FindingType(text(data["type"], "a finding's type")),
        explanation=text(data["explanation"], "an explanation"),
        layer=None if layer is None else whole(layer, "a finding's layer"),
        stages=tuple(text(one, "a stage's name") for one in items(data["stages"], "a finding's stages")),
        cause=_cause(data.get("cause")),
    )


def _cause(value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    data = mapping(value, "a cause")
    return text(data["name"], "a cause's name"), text(data["says"], "a cause in words")


def _derived(
    found: Mapping[str, Any], file: str, rows: Sequence[_Row], findings: Sequence[Finding], count: Count
) -> None:
    """What follows from the rows and the findings: kind, complete, sources, the published rule."""
    types = [one.type for one in findings]
    lacking = (FindingType.UNMEASURED, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
    sources = [
        one
        for one, kind in zip(found["findings"], types, strict=True)
        if kind in (FindingType.SOURCE, FindingType.WEIGHTS)
    ]
    grouped = "causes" in found  # earlier versions grouped none: several sources were several
    told = findings if grouped else [replace(one, cause=None) for one in findings]
    expected = {
        "kind": kind_of(told, [one.row for one in rows]).value,
        **({"causes": [one.to_json() for one in root_causes(findings)]} if grouped else {}),
        "complete": not any(kind in lacking for kind in types),
        "sources": sources,
        "published_rule": _published(rows),
    }
    flag(found["complete"], "complete")
    for name, value in expected.items():
        _count(
            count, file, name, found[name] == value, f"is {found[name]!r:.120}, its rows give {value!r:.120}"
        )


def _published(rows: Sequence[_Row]) -> dict[str, Any]:
    cosines: dict[int, dict[str, float | None]] = {}
    for one in rows:
        if one.key.layer is not None and one.row.status is not Status.NOT_APPLICABLE:
            cosines.setdefault(one.key.layer, {})[one.key.stage] = one.cosine
    measured = {layer: found for layer, found in cosines.items() if set(found.values()) != {None}}
    layers = [published_rule(layer, found).to_json() for layer, found in measured.items()]
    first = layers[0] if layers else {"chain": [], "cosines": [], "crossings": []}
    return {**first, "layers": layers}


def _count(
    count: Count, file: str, name: str, holds: bool, message: str, code: str = "figure-differs"
) -> None:
    if holds:
        count.recomputed.append(f"{file}: {name}")
    else:
        count.problems.append(BundleProblem(code=code, file=file, message=f"{name} {message}"))


def _replay_count(count: Count, file: str, name: str, holds: bool, message: str) -> None:
    """Count a figure of a replay, which may change with the version, unlike a sum over stored values."""
    hint = f"{message}; it was altered, or this version replays otherwise: run the falsifier again"
    _count(count, file, name, holds, hint, REPLAY_DIFFERS)


def _provenance(
    found: Mapping[str, Any], file: str, sides: tuple[SideTrace, SideTrace], count: Count
) -> None:
    for name, side in zip(("oracle", "subject"), sides, strict=True):
        same = side.provenance == mapping(found[name], name)
        _count(count, file, f"provenance of the {name}", same, f"is not that of {name}/trace.json")
        tokens = list(side.trace.tokens)
        _count(count, file, f"tokens of the {name}", found["tokens"] == tokens, f"are {tokens} in its trace")


def _solved(
    sides: tuple[SideTrace, SideTrace] | None, findings: Sequence[Finding]
) -> tuple[Trace, Trace] | None:
    """Return the traces with their values, the subject's in the layout that the findings name."""
    if sides is None or not all(side.has_values for side in sides):
        return None
    oracle, subject = (side.trace for side in sides)
    return oracle, read_again(subject, None, findings).trace


def _accumulated(file: str, rows: Sequence[_Row], traces: tuple[Trace, Trace] | None, count: Count) -> None:
    if traces is not None:
        _complete(file, rows, *traces, count)
    for one in rows:
        if one.data["accumulated"] is None:
            continue
        if traces is None:
            count.attested.append(f"{file}: {one.name} accumulated, nonfinite")
            continue
        oracle, subject = traces
        if one.key not in oracle.stages or one.key not in subject.stages:
            message = f"{one.name} is compared, and a side has no such stage"
            count.problems.append(BundleProblem(code="figure-differs", file=file, message=message))
            continue
        _compared(file, one, oracle, subject, count)


def _complete(file: str, rows: Sequence[_Row], oracle: Trace, subject: Trace, count: Count) -> None:
    """Whether every stage that both sides hold is compared, in the layers that are: none is left out."""
    layers = {one.key.layer for one in rows}
    told = {one.key for one in rows if one.data["accumulated"] is not None}
    both = [key for key in oracle.stages if key in subject.stages and key.layer in layers]
    comparable = same_shapes(oracle.geometry, subject.geometry)
    lacking = [f"{stage} of layer {layer}" for layer, stage in both if (layer, stage) not in told]
    holds = not (comparable and lacking)
    _count(count, file, "stages", holds, f"lack {', '.join(lacking)}, which both sides hold")


def _compared(file: str, one: _Row, oracle: Trace, subject: Trace, count: Count) -> None:
    try:
        pair = aligned(
            one.key,
            oracle.stages[one.key],
            subject.stages[one.key],
            oracle.geometry,
            oracle.passes,
            subject.passes,
        )
        metrics = compare_arrays(pair.oracle, pair.subject, pair.axes)
    except AprFalsifyError as error:
        count.problems.append(as_problem(error, "figure-differs", file))
        return
    expected = metrics.to_json()
    told = mapping(one.data["accumulated"], "accumulated")
    lacking = [name for name in expected if name not in told]
    wrong = [name for name in _FIGURES if not _close(told.get(name), expected[name], SAME)]
    if not wrong and not lacking and told["at"] != expected["at"]:
        wrong = [] if _as_far(told["at"], pair.oracle, pair.subject, metrics.max_abs) else ["at"]
    words = ", ".join(f"{name} {told.get(name)!r:.40}, not {expected[name]!r}" for name in [*wrong, *lacking])
    _count(count, file, f"{one.name} accumulated", not words, f"is {words}")
    same = one.data["nonfinite"] == metrics.nonfinite_json()
    _count(count, file, f"{one.name} nonfinite", same, f"counts are {metrics.nonfinite_json()}")
    same = one.data["shape"] == list(pair.oracle.shape)
    same = same and one.data["layout"] == [word.value for word in pair.layout]
    _count(count, file, f"{one.name} shape and layout", same, f"is {list(pair.oracle.shape)}")


_FIGURES = ("cosine", "rel_l2", "norm_ratio", "max_abs")


def _as_far(at: object, oracle: Any, subject: Any, distance: float) -> bool:
    """Whether the sides are as far apart at another place: of several, any may be named."""
    place = tuple(whole(one, "a place") for one in items(at, "a place"))
    inside = len(place) == oracle.ndim and all(
        0 <= index < size for index, size in zip(place, oracle.shape, strict=True)
    )
    return inside and _close(abs(float(subject[place]) - float(oracle[place])), distance, SAME)


def _close(told: object, expected: float | None, allowed: tuple[float, float]) -> bool:
    if told is None or expected is None:
        return told is None and expected is None
    if isinstance(told, bool) or not isinstance(told, int | float):
        return False
    relative, absolute = allowed
    try:
        return math.isfinite(told) and math.isclose(told, expected, rel_tol=relative, abs_tol=absolute)
    except OverflowError:  # JSON has whole numbers beyond every float
        return False


def _replayed(
    file: str,
    rows: Sequence[_Row],
    findings: Sequence[Finding],
    sides: tuple[SideTrace, SideTrace] | None,
    weights: tuple[Weights | None, Weights | None],
    count: Count,
) -> None:
    """Replay the stages; of two ways in which the weights may have been used, the one that fits better."""
    oracle, subject = weights
    ways = [(oracle, subject)] if subject is None else [(oracle, subject), (oracle or subject, None)]
    tried = [_replay(file, rows, findings, sides, way) for way in ways]
    best = min(tried, key=lambda one: len(one.problems))
    count.recomputed += best.recomputed
    count.attested += best.attested
    count.problems += best.problems


def _replay(
    file: str,
    rows: Sequence[_Row],
    findings: Sequence[Finding],
    sides: tuple[SideTrace, SideTrace] | None,
    weights: tuple[Weights | None, Weights | None],
) -> Count:
    count = Count()
    judged = [one for one in rows if one.data["introduced"] is not None or one.data["residual"] is not None]
    again = _again(rows, findings, sides, weights) if judged else None
    replayed = {} if again is None else {(row.layer, row.stage): row for row in again.rows}
    for one in judged:
        row = replayed.get(one.key)
        if row is None or row.introduced is None or row.residual is None:
            count.attested.append(f"{file}: {one.name} introduced, residual, floor")
            continue
        told = row.to_json()
        wrong = [name for name in _REPLAYED if not _near(one.data[name], told[name])]
        words = ", ".join(f"{name} {one.data[name]!r:.120}, not {told[name]!r:.120}" for name in wrong)
        _replay_count(count, file, f"{one.name} introduced, residual, floor", not wrong, f"is {words}")
    if again is None or weights == (None, None):
        count.attested.append(f"{file}: verdicts and findings")
        return count
    for one in rows:
        verdict = replayed[one.key].verdict if one.key in replayed else None
        _replay_count(
            count,
            file,
            f"{one.name} verdict",
            verdict is one.row.verdict,
            f"is {one.row.verdict}, not {verdict}",
        )
    _findings_again(file, findings, again, count)
    return count


_REPLAYED = ("introduced", "residual", "floor", "excess")
_OF_THE_RUNS = (FindingType.TOKENIZER, FindingType.WEIGHTS)
"""Findings about what is not in a bundle: the tokenizer, the other side's weights."""


def _findings_again(file: str, findings: Sequence[Finding], again: Bisection, count: Count) -> None:
    told, found = (
        sorted((one.type.value, one.stages) for one in some if one.type not in _OF_THE_RUNS)
        for some in (findings, again.findings)
    )
    _replay_count(
        count, file, "findings", told == found, f"are {told!r:.200}, replaying finds {found!r:.200}"
    )


def _near(told: object, expected: object) -> bool:
    if isinstance(expected, Mapping):
        values = mapping(told, "introduced")
        return all(_near(values[name], expected[name]) for name in _FIGURES)
    return _close(told, expected if isinstance(expected, float) else None, NEAR)


def _again(
    rows: Sequence[_Row],
    findings: Sequence[Finding],
    sides: tuple[SideTrace, SideTrace] | None,
    weights: tuple[Weights | None, Weights | None],
) -> Bisection | None:
    """Bisect again with the weights that there are; without any, what needs none is replayed.

    How the subject holds its values may not show without the weights: then it is taken as was found.
    """
    if sides is None or not all(side.has_values for side in sides):
        return None
    subject = sides[1].trace
    return bisect(
        sides[0].trace,
        subject if weights != (None, None) else read_again(subject, None, findings).trace,
        weights=weights[0],
        subject_weights=weights[1],
        layers=sorted({one.key.layer for one in rows if one.key.layer is not None}),
        stages=tuple(dict.fromkeys(one.key.stage for one in rows)),
    )
