"""The tally of falsifiers, the roadmap, and how much of each model ships: computed, never written by hand.

The roadmap is a YAML file of schema ``apr-falsify/roadmap/v1`` beside the contracts: steps and models bound
to falsifiers by id. It says what is to be reached and what a step waits for, never where it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.contracts.facts import ContractFacts
from apr_falsify.contracts.files import read_bytes
from apr_falsify.contracts.model import text_of
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.source import Mapping as YamlMapping
from apr_falsify.contracts.source import Sequence, Text, Value, parse
from apr_falsify.contracts.standing import ABSENT, STATES, Evidence, Standing
from apr_falsify.contracts.statuses import FUNCTIONAL, LADDER, PARTIAL
from apr_falsify.errors import UsageError, nearest

ROADMAP_SCHEMA = "apr-falsify/roadmap/v1"
_LEVELS = ("algorithm", "operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadmapStep:
    """One step of the roadmap: done when every falsifier it is bound to stands at ``reach`` or above."""

    number: str
    title: str
    level: str
    reach: str
    falsifiers: Mapping[str, str]  # id -> the rung it stands on, empty where it claims none
    waits_for: str

    @property
    def is_done(self) -> bool:
        """Whether it is reached; a step bound to nothing never is."""
        return bool(self.falsifiers) and all(_reaches(rung, self.reach) for rung in self.falsifiers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One acceptance criterion of a model: met when all its falsifiers are FUNCTIONAL."""

    id: str
    title: str
    falsifiers: Mapping[str, str]

    @property
    def is_met(self) -> bool:
        """Whether it is met; one bound to nothing never is."""
        return bool(self.falsifiers) and all(rung == FUNCTIONAL for rung in self.falsifiers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """One model and its acceptance criteria."""

    name: str
    criteria: tuple[Criterion, ...]

    @property
    def ship_percent(self) -> int | None:
        """Share of its criteria that are met, rounded down; None where it has none, which is not 0 %."""
        met = sum(criterion.is_met for criterion in self.criteria)
        return 100 * met // len(self.criteria) if self.criteria else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Where the contracts stand: falsifiers by rung, the roadmap's steps, the models."""

    rungs: Mapping[str, int]
    unranked: int
    contracts: int
    steps: tuple[RoadmapStep, ...] = ()
    models: tuple[CountedModel, ...] = ()
    evidence: Mapping[str, Mapping[str, int]] | None = None  # rung -> state -> how many, where it is kept

    @property
    def short(self) -> str:
        """The hunt's own way to say it: FUNCTIONAL + PARTIAL."""
        return f"{self.rungs[FUNCTIONAL]}+{self.rungs[PARTIAL]}"


def tally(suite: Iterable[ContractFacts], roadmap: Path | None, evidence: Evidence | None = None) -> Tally:
    """Count the falsifiers of a suite and read its roadmap against them.

    ``evidence`` is the state of the project's evidence, where it keeps some.

    Raises:
        UsageError: the roadmap cannot be read, or names a falsifier that no contract has.

    """
    contracts = [facts for facts in suite if facts.is_contract]
    rungs = {one.id: one.rung for facts in contracts for one in facts.falsifiers}
    count = Counter(one.rung for facts in contracts for one in facts.falsifiers)
    data = _read(roadmap) if roadmap else YamlMapping()
    where = roadmap or Path("roadmap")
    return Tally(
        rungs={rung: count[rung] for rung in LADDER},
        unranked=count[""],
        contracts=len(contracts),
        steps=tuple(_step(item, rungs, where) for item in _items(data.get("steps"))),
        models=tuple(_model(item, rungs, where) for item in _items(data.get("models"))),
        evidence=None if evidence is None else _by_state(rungs, evidence),
    )


def _by_state(rungs: Mapping[str, str], evidence: Evidence) -> dict[str, dict[str, int]]:
    absent = Standing(state=ABSENT)
    states = [(rung, evidence.standings.get(name, absent).state) for name, rung in rungs.items()]
    return {rung: {state: states.count((rung, state)) for state in STATES} for rung in LADDER}


def _reaches(rung: str, wanted: str) -> bool:
    return rung in LADDER and LADDER.index(rung) >= LADDER.index(wanted)


def _read(path: Path) -> YamlMapping:
    raw = read_bytes(path)
    if isinstance(raw, Problem):
        raise UsageError(raw.message, where=path)
    source = parse(path.as_posix(), raw)
    if source.problems:
        first = source.problems[0]
        raise UsageError(first.message, where=f"{path}:{first.line}:{first.column}", expected=first.hint)
    if not isinstance(source.data, YamlMapping) or text_of(source.data, "schema") != ROADMAP_SCHEMA:
        raise UsageError("is no roadmap", where=path, expected=f"schema: {ROADMAP_SCHEMA}")
    return source.data


def _items(value: Value) -> Iterator[YamlMapping]:
    if isinstance(value, Sequence):
        yield from (item for item in value if isinstance(item, YamlMapping))


def _bound(item: YamlMapping, rungs: Mapping[str, str], where: Path) -> dict[str, str]:
    ids = item.get("falsifiers")
    bound = {}
    for one in ids if isinstance(ids, Sequence) else ():
        if not isinstance(one, Text) or str(one) not in rungs:
            line = one.line if isinstance(one, Text) else item.line
            raise UsageError(
                f"no contract has the falsifier {one!s}",
                where=f"{where}:{line}",
                remedy=nearest(str(one), rungs),
            )
        bound[str(one)] = rungs[str(one)]
    return bound


def _step(item: YamlMapping, rungs: Mapping[str, str], where: Path) -> RoadmapStep:
    return RoadmapStep(
        number=text_of(item, "step"),
        title=text_of(item, "title"),
        level=_one_of(item, "level", _LEVELS, where),
        reach=_one_of(item, "reach", LADDER, where),
        falsifiers=_bound(item, rungs, where),
        waits_for=text_of(item, "waits_for"),
    )


def _one_of(item: YamlMapping, key: str, words: tuple[str, ...], where: Path) -> str:
    word = text_of(item, key)
    if word not in words:
        raise UsageError(
            f"{key} {word!r} is unknown", where=f"{where}:{item.line}", expected=" or ".join(words)
        )
    return word


def _model(item: YamlMapping, rungs: Mapping[str, str], where: Path) -> CountedModel:
    criteria = tuple(
        Criterion(id=text_of(one, "id"), title=text_of(one, "title"), falsifiers=_bound(one, rungs, where))
        for one in _items(item.get("criteria"))
    )
    return CountedModel(name=text_of(item, "model"), criteria=criteria)
