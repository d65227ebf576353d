"""A bisection as a page needs it: read strictly from its JSON, wherever that comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.compare.bisection import SCHEMA, FindingType, Kind, Status, Verdict
from apr_falsify.compare.findings import NO_DIVERGENCE
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.reading import flag, items, mapping, number, text, whole
from apr_falsify.traces.provenance import Provenance

_T = TypeVar("_T")


class RowState(StrEnum):
    """What a page says of one stage."""

    SOURCE = "source"
    INHERITS = "inherits"
    RIGHT = "right"
    LAYOUT = "layout"
    UNMEASURED = "unmeasured"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How one tensor compares with another; ``None`` for a figure that is infinite or NaN.

    Attributes:
        cosine: of the angle between the two.
        rel_l2: relative L2 distance.
        norm_ratio: the subject's norm over the other's.
        max_abs: the greatest difference.
        at: its index; empty where nothing finite was compared.

    """

    cosine: float | None
    rel_l2: float | None
    norm_ratio: float | None
    max_abs: float | None
    at: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """One stage; the attributes are those of the bisection's row, ``state`` is what the page says of it."""

    key: Key
    status: Status
    verdict: Verdict
    state: RowState
    shape: tuple[int, ...]
    layout: tuple[str, ...]
    nonfinite: tuple[int, int, int]
    accumulated: Figures | None
    introduced: Figures | None
    arithmetic: str | None
    residual: float | None
    floor: float | None
    excess: float | None
    simulated: bool
    edges: int

    @property
    def layer(self) -> int | None:
        """Its layer, ``None`` for a whole-model stage."""
        return self.key.layer

    @property
    def stage(self) -> str:
        """Its name."""
        return self.key.stage

    @property
    def replayed(self) -> bool:
        """Whether it was judged by its replay."""
        return self.introduced is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One finding, as in the bisection; ``cause`` is its cause in words, empty where none fits."""

    type: FindingType
    layer: int | None
    stages: tuple[str, ...]
    size: float | None
    explanation: str
    advice: str
    cause: str

    @property
    def is_source(self) -> bool:
        """Whether it names a source."""
        return self.type in (FindingType.SOURCE, FindingType.WEIGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAnswer:
    """The published rule's answer for one layer."""

    layer: int
    chain: tuple[str, ...]
    cosines: tuple[float | None, ...]
    crossings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """A bisection as a page needs it.

    Attributes:
        kind: its headline.
        complete: whether everything needed was measured.
        rows: the stages, in forward order; without those that were not requested or do not exist.
        findings: everything found.
        rules: the published rule's answers, one per layer.
        not_checked: what was not looked at.
        tokens: the token ids of both runs.
        oracle: where the oracle's trace comes from.
        subject: where the subject's trace comes from.
        geometry: the model's geometry, ``None`` where only the JSON is at hand.

    """

    kind: Kind
    complete: bool
    rows: tuple[PageRow, ...]
    findings: tuple[Found, ...]
    rules: tuple[PublishedAnswer, ...]
    not_checked: tuple[str, ...]
    tokens: tuple[int, ...]
    oracle: Provenance
    subject: Provenance
    geometry: Geometry | None = None

    @property
    def sources(self) -> tuple[Found, ...]:
        """The findings that name a source."""
        return tuple(found for found in self.findings if found.is_source)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a row."""
        return tuple(sorted({row.layer for row in self.rows if row.layer is not None}))

    def of_layer(self, layer: int | None) -> tuple[PageRow, ...]:
        """Return the rows of one layer, or of the whole model."""
        return tuple(row for row in self.rows if row.layer == layer)

    def place(self, row: PageRow) -> str:
        """Return where the greatest difference of a row is, in words."""
        at = () if row.accumulated is None else row.accumulated.at
        axes = _axes(row, self.geometry)
        if axes is None or not at:
            return ""
        if len(at) == len(axes.names) - 1:
            axes = axes.of_last_token()
        try:
            return axes.words(at) if len(at) == len(axes.names) else str(list(at))
        except IndexError:
            return str(list(at))


def _axes(row: PageRow, geometry: Geometry | None) -> Axes | None:
    if row.stage not in STAGES:
        return None
    if geometry is not None:
        return axes_of(row.stage, geometry)
    plain = {"tokens": "token", "heads": "head", "vocab": "vocabulary entry"}
    return Axes(names=tuple(plain.get(word, "channel") for word in STAGES[row.stage].axes))


def read_view(data: object, geometry: Geometry | None = None) -> PageView:
    """Read an object of schema ``apr-falsify/bisection/v1``.

    Raises:
        ValueError: another schema, something missing, or a value of the wrong type.

    """
    found = mapping(data, "the bisection")
    if found.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {found.get('schema')!r}, not {SCHEMA}")
    findings = tuple(_finding(entry) for entry in items(found.get("findings"), "findings"))
    rows = tuple(_row(entry) for entry in items(found.get("stages"), "stages"))
    rules = mapping(found.get("published_rule"), "published_rule")
    return PageView(
        kind=Kind(text(found.get("kind"), "kind")),
        complete=flag(found.get("complete"), "complete"),
        rows=_with_states(_shown(rows), findings),
        findings=findings,
        rules=tuple(_rule(entry) for entry in items(rules.get("layers"), "published_rule.layers")),
        not_checked=_texts(found.get("not_checked"), "not_checked"),
        tokens=tuple(whole(token, "a token") for token in items(found.get("tokens"), "tokens")),
        oracle=Provenance.from_json(mapping(found.get("oracle"), "oracle")),
        subject=Provenance.from_json(mapping(found.get("subject"), "subject")),
        geometry=geometry,
    )


_NEVER_SHOWN = (Status.NOT_REQUESTED, Status.NOT_APPLICABLE)


def _shown(rows: tuple[PageRow, ...]) -> tuple[PageRow, ...]:
    return tuple(row for row in rows if row.status not in _NEVER_SHOWN)


def _row(data: object) -> PageRow:
    entry = mapping(data, "a stage")
    counts = mapping(entry.get("nonfinite") or {}, "nonfinite")
    verdict, status = (text(entry.get(name), name) for name in ("verdict", "status"))
    return PageRow(
        key=Key(_optional(whole, entry, "layer"), text(entry.get("stage"), "stage")),
        status=Status(status),
        verdict=Verdict(verdict),
        state=_STATES[Verdict(verdict)] if Status(status) not in _ABSENT else RowState.ABSENT,
        shape=tuple(whole(size, "a size") for size in items(entry.get("shape"), "shape")),
        layout=_texts(entry.get("layout"), "layout"),
        nonfinite=(_count(counts, "oracle"), _count(counts, "subject"), _count(counts, "mismatch")),
        accumulated=_optional(_figures, entry, "accumulated"),
        introduced=_optional(_figures, entry, "introduced"),
        arithmetic=_optional(text, entry, "arithmetic"),
        residual=_optional(number, entry, "residual"),
        floor=_optional(number, entry, "floor"),
        excess=_optional(number, entry, "excess"),
        simulated=flag(entry.get("floor_is_simulated", False), "floor_is_simulated"),
        edges=whole(entry.get("edges", 0), "edges"),
    )


_STATES: Mapping[Verdict, RowState] = {
    Verdict.WITHIN_FLOOR: RowState.RIGHT,
    Verdict.INTRODUCES: RowState.SOURCE,
    Verdict.INHERITS: RowState.INHERITS,
    Verdict.LAYOUT: RowState.LAYOUT,
    Verdict.UNMEASURED: RowState.UNMEASURED,
}
_ABSENT = (Status.MISSING_IN_SUBJECT, Status.MISSING_IN_ORACLE)


def _with_states(rows: tuple[PageRow, ...], findings: tuple[Found, ...]) -> tuple[PageRow, ...]:
    """Tell what a wrong weight leaves: a stage that is right for its own weight, and wrong all the same."""
    weights = {
        (each.layer, name) for each in findings if each.type is FindingType.WEIGHTS for name in each.stages
    }
    told, met = [], False
    for row in rows:
        met = met or row.key in weights
        state = row.state
        if row.key in weights and row.accumulated is not None:
            state = RowState.SOURCE
        elif met and state is RowState.RIGHT and not _agrees(row):
            state = RowState.INHERITS
        told.append(replace(row, state=state))
    return tuple(told)


def _agrees(row: PageRow) -> bool:
    figures = row.accumulated
    return figures is None or (figures.rel_l2 is not None and figures.rel_l2 <= NO_DIVERGENCE)


def _figures(value: object, name: str) -> Figures:
    entry = mapping(value, name)
    cosine, rel_l2, ratio, largest = (
        _optional(number, entry, key) for key in ("cosine", "rel_l2", "norm_ratio", "max_abs")
    )
    at = items(entry.get("at") or [], "at")
    return Figures(
        cosine=cosine,
        rel_l2=rel_l2,
        norm_ratio=ratio,
        max_abs=largest,
        at=tuple(whole(index, "at") for index in at),
    )


def _finding(data: object) -> Found:
    entry = mapping(data, "a finding")
    cause = mapping(entry.get("cause") or {}, "cause")
    return Found(
        type=FindingType(text(entry.get("type"), "type")),
        layer=_optional(whole, entry, "layer"),
        stages=_texts(entry.get("stages"), "stages"),
        size=_optional(number, entry, "size"),
        explanation=text(entry.get("explanation"), "explanation"),
        advice=text(entry.get("try"), "try"),
        cause=text(cause.get("says", ""), "cause.says"),
    )


def _rule(data: object) -> PublishedAnswer:
    entry = mapping(data, "a layer of published_rule")
    chain = _texts(entry.get("chain"), "chain")
    cosines = items(entry.get("cosines"), "cosines")
    pairs = [_texts(pair, "a crossing") for pair in items(entry.get("crossings"), "crossings")]
    if len(cosines) != len(chain) or any(len(pair) != 2 for pair in pairs):
        raise ValueError("published_rule gives another number of cosines than of stages")
    return PublishedAnswer(
        layer=whole(entry.get("layer"), "layer"),
        chain=chain,
        cosines=tuple(None if each is None else number(each, "a cosine") for each in cosines),
        crossings=tuple((pair[0], pair[1]) for pair in pairs),
    )


def _texts(value: object, name: str) -> tuple[str, ...]:
    return tuple(text(each, name) for each in items(value, name))


def _count(counts: Mapping[str, Any], name: str) -> int:
    return whole(counts.get(name, 0), name)


def _optional(read: Callable[[object, str], _T], entry: Mapping[str, Any], name: str) -> _T | None:
    value = entry.get(name)
    return None if value is None else read(value, name)
