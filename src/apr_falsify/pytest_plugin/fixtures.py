"""The fixtures for people's own falsifiers."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from apr_falsify.commands.lanes import Lane
from apr_falsify.contracts.claim import Claim, plain
from apr_falsify.contracts.source import parse
from apr_falsify.evidence.outcome import SeenRun
from apr_falsify.pytest_plugin.project import SESSION
from apr_falsify.pytest_plugin.state import FILES_GIVEN, FIXTURES_USED, Work

if TYPE_CHECKING:
    from apr_falsify.compare.bisection import Bisection
    from apr_falsify.pytest_plugin.measuring import Measured
    from apr_falsify.traces.trace import Trace

MEASURES: Mapping[str, SeenRun] = {
    "_oracle_of_the_lane": SeenRun.ORACLE,
    "_subject_of_the_lane": SeenRun.SUBJECT,
    "embedded_bisection": SeenRun.EMBEDDED,
}
"""Fixture -> what whoever asks for it has measured.

Those of the lane are not the ones that tests name: a project may have a fixture ``bisection`` of its own.
"""


def _work(config: pytest.Config) -> Work:
    work: Work = config.pluginmanager.get_plugin(SESSION).work  # type: ignore[union-attr]  # it registers this module
    return work


@pytest.fixture(scope="session")
def lane(pytestconfig: pytest.Config) -> Lane:
    """The lane to measure on: name, device, dtype, oracle, subject, prompt, layers.

    The embedded default where neither --gpu nor --lane nor a model is given.
    """
    return _work(pytestconfig).options.lane


@pytest.fixture(autouse=True)
def _note_fixtures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note the fixtures that the test requested; only when it has ended are these all."""
    yield
    request.node.stash[FIXTURES_USED] = frozenset(request.fixturenames)


@pytest.fixture(scope="session")
def _oracle_of_the_lane(pytestconfig: pytest.Config, lane: Lane) -> Measured:
    """What the lane gave, for who looks at the oracle."""
    return _work(pytestconfig).measurements.of(lane)


@pytest.fixture(scope="session")
def _subject_of_the_lane(pytestconfig: pytest.Config, lane: Lane) -> Measured:
    """What the lane gave, for who looks at the subject."""
    return _work(pytestconfig).measurements.of(lane)


@pytest.fixture(scope="session")
def oracle_trace(_oracle_of_the_lane: Measured) -> Trace:
    """The oracle's captured stages on the lane; captured once a session, whatever asks for it."""
    return _oracle_of_the_lane.oracle


@pytest.fixture(scope="session")
def subject_trace(_subject_of_the_lane: Measured) -> Trace:
    """The subject's captured stages on the lane; captured once a session, whatever asks for it."""
    return _subject_of_the_lane.subject


@pytest.fixture(scope="session")
def bisection(_oracle_of_the_lane: Measured, _subject_of_the_lane: Measured) -> Bisection:
    """What comparing the lane's two traces says: kind, sources, findings, one row a stage.

    It becomes bisection.json of the bundle of every falsifier whose test asks for it. A live test shows
    something of the lane only where it asks for this or for ``subject_trace``.
    """
    return _subject_of_the_lane.bisection


@pytest.fixture(scope="session")
def embedded_bisection(pytestconfig: pytest.Config) -> Bisection:
    """What the embedded default gives, whatever the lane: a correct subject, so a negative control."""
    return _work(pytestconfig).measurements.of(Lane()).bisection


@pytest.fixture
def falsifier(request: pytest.FixtureRequest) -> Claim:
    """The claim of the falsifier whose marker the test carries: id, rung, rule, prediction, thresholds."""
    claims = _work(request.config).claims
    carried = {mark.name for mark in request.node.iter_markers() if mark.name in claims}
    if len(carried) != 1:
        told = ", ".join(sorted(carried)) or "none"
        pytest.fail(f"the fixtures falsifier and contract need one falsifier's marker; it carries {told}")
    return claims[carried.pop()]


@pytest.fixture
def contract(falsifier: Claim) -> Mapping[str, Any]:
    """The contract of the test's falsifier, as plain values: metadata, equations, discharge, thresholds."""
    data = parse(str(falsifier.path), falsifier.path.read_bytes()).data
    found: Mapping[str, Any] = plain(data)
    return found


@pytest.fixture
def keep_bisection(request: pytest.FixtureRequest) -> Callable[[str, Bisection], None]:
    """A function (name, bisection) that keeps a control's bisection in the bundle, controls/NAME.

    What is no letter, digit, dot or dash in the name becomes a dash.
    """
    kept = request.node.stash.setdefault(FILES_GIVEN, [])
    folder = _work(request.config).shared.path / "kept"

    def keep(name: str, bisection: Bisection) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(bisection.to_json()), encoding="utf-8")
        kept.append((re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "control", str(path)))

    return keep
