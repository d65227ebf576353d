"""The fixtures for people's own falsifiers."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from apr_falsify.commands.lanes import Lane
from apr_falsify.contracts.claim import Claim, plain
from apr_falsify.contracts.source import parse
from apr_falsify.pytest_plugin.entry import SESSION
from apr_falsify.pytest_plugin.state import KEPT, Work

if TYPE_CHECKING:
    from apr_falsify.compare.bisection import Bisection
    from apr_falsify.trace import Trace

LANE_FIXTURES = ("bisection", "oracle_trace", "subject_trace")
"""What measures the session's lane."""

EMBEDDED_FIXTURE = "embedded_bisection"
"""What measures the embedded default, whatever the lane."""


def _work(config: pytest.Config) -> Work:
    work: Work = config.pluginmanager.get_plugin(SESSION).work  # type: ignore[union-attr]  # it registers this module
    return work


@pytest.fixture(scope="session")
def lane(pytestconfig: pytest.Config) -> Lane:
    """The lane to measure on: name, device, dtype, oracle, subject, prompt, layers.

    The embedded default where neither --gpu nor --lane nor a model is given.
    """
    return _work(pytestconfig).asked.lane


@pytest.fixture(scope="session")
def oracle_trace(pytestconfig: pytest.Config, lane: Lane) -> Trace:
    """The oracle's captured stages on the lane; captured once a session, whatever asks for it."""
    return _work(pytestconfig).measurements.of(lane).oracle


@pytest.fixture(scope="session")
def subject_trace(pytestconfig: pytest.Config, lane: Lane) -> Trace:
    """The subject's captured stages on the lane; captured once a session, whatever asks for it."""
    return _work(pytestconfig).measurements.of(lane).subject


@pytest.fixture(scope="session")
def bisection(pytestconfig: pytest.Config, lane: Lane) -> Bisection:
    """What comparing the lane's two traces says: kind, sources, findings, one row a stage.

    It becomes bisection.json of the bundle of every falsifier whose test asks for it.
    """
    return _work(pytestconfig).measurements.of(lane).bisection


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
    kept = request.node.stash.setdefault(KEPT, [])
    folder = _work(request.config).shared.path / "kept"

    def keep(name: str, bisection: Bisection) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(bisection.to_json()), encoding="utf-8")
        kept.append((re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "control", str(path)))

    return keep
