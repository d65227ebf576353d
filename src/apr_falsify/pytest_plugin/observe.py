"""In the process that runs a test: how each phase of it ended, noted on its report."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import pytest

from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.outcome import Ended
from apr_falsify.pytest_plugin.fixtures import MEASURES
from apr_falsify.pytest_plugin.state import CARRIED, FILES_GIVEN, FIXTURES_USED

NOTE = "apr_falsify_note"
"""The attribute of a report that holds the note; plain values, so that it passes between processes."""

_LONGEST_REASON = 400

_BROKEN_INSTRUMENT = (
    *(AprFalsifyError, OSError, MemoryError, ImportError),
    pytest.PytestReturnNotNoneWarning,
)
"""What a test raises where it could not measure; anything else that it raises refutes its prediction."""


def note_of(report: pytest.TestReport) -> Mapping[str, Any] | None:
    """Return what was noted on ``report``, ``None`` where its test decides no falsifier."""
    note: Mapping[str, Any] | None = getattr(report, NOTE, None)
    return note


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on the report how the phase ended; print a refuting bisection as a stage table."""
    error = (
        None if call.excinfo is None else call.excinfo.value
    )  # before other plugins have their way with it
    report = yield
    if not item.stash.get(CARRIED, ()):
        return report
    _render(report, error)
    ended = _ended(report, error)
    note = {
        "ended": ended.value,
        "reason": "" if ended is Ended.PASSED else _reason(report, error),
        "measured": [measured.value for name, measured in MEASURES.items() if name in _fixtures(item)],
        "kept": [list(pair) for pair in item.stash.get(FILES_GIVEN, [])],
    }
    setattr(report, NOTE, note)
    return report


def _fixtures(item: pytest.Item) -> frozenset[str]:
    """The fixtures that it requests by argument and, once it has ended, those that it requested as it ran."""
    return item.stash.get(FIXTURES_USED, frozenset()).union(getattr(item, "fixturenames", ()))


def _render(report: pytest.TestReport, error: BaseException | None) -> None:
    if not report.failed or error is None:
        return
    said = _message(error)
    if said is not None:
        report.longrepr = said


def _message(error: BaseException) -> str | None:
    if isinstance(error, AprFalsifyError):
        return str(error)
    if isinstance(error, AssertionError):  # before this is known, the heavy modules stay out
        from apr_falsify.pytest_plugin.verdict import Falsified

        if isinstance(error, Falsified):
            return error.report()
    return None


def _ended(report: pytest.TestReport, error: BaseException | None) -> Ended:
    expected = hasattr(report, "wasxfail")
    if report.skipped:
        return Ended.XFAILED if expected else Ended.SKIPPED
    if report.passed and error is not None:  # a plugin made another word of it
        return Ended.ERROR
    if report.passed:
        return Ended.XPASSED if expected else Ended.PASSED
    if error is None:  # a strict xfail that passed
        return Ended.XPASSED
    if report.when != "call" or isinstance(error, (*_BROKEN_INSTRUMENT, pytest.skip.Exception)):
        return Ended.ERROR
    return Ended.FAILED


def _reason(report: pytest.TestReport, error: BaseException | None) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        said = report.longrepr[2].removeprefix("Skipped: ")
    elif hasattr(report, "wasxfail"):
        said = str(report.wasxfail)
    elif error is None or isinstance(error, pytest.skip.Exception):
        said = str(report.longrepr)
    else:
        said = str(error) or type(error).__name__
        if report.passed:
            said = f"it raised, and a plugin reports it as passed: {said}"
    first = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return first[:_LONGEST_REASON]
