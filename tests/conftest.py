"""For all tests: the ledger of skips, and a temporary directory that pytest removes."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Container, Generator, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

# A shell starts a background job with Ctrl-C ignored, and its children inherit that. Tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

LEDGER = Path(__file__).parent / "skips.md"


def ledger() -> dict[str, str]:
    """Return reason -> marker of tests that are skipped for it, or nothing; ``*`` stands for any text."""
    rows = r"^\| `([^`]+)` \| (?:`(\w+)` )?\|"
    return dict(re.findall(rows, LEDGER.read_text(encoding="utf-8"), flags=re.MULTILINE))


def _refused(report: pytest.TestReport | pytest.CollectReport, markers: Container[str]) -> str:
    """Return why a skip is a failure, empty where it is none."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return ""
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = said.removeprefix("Skipped: ")
    wanted = next((marker for known, marker in ledger().items() if fnmatchcase(reason, known)), None)
    if wanted is None:
        return f"skipped for a reason that tests/{LEDGER.name} does not list: {reason}"
    if wanted and wanted not in markers:
        return f"skipped without the marker {wanted}, which says what it needs: {reason}"
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if why := _refused(report, {mark.name for mark in item.iter_markers()}):
        report.outcome, report.longrepr = "failed", why
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if why := _refused(report, ()):
        report.outcome, report.longrepr = "failed", why
    return report


@pytest.fixture(autouse=True)
def _nothing_beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what lies beside the checkout from tests that are marked ``bare``, in whichever lane they run."""
    if request.node.get_closest_marker("bare"):
        monkeypatch.delenv("APR_FALSIFY_REAL", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory_of_pytest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests, and programs that they start, leave in the temporary directory out of the real one.

    The name is short: a browser puts a socket below it, whose path may have 107 bytes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)
        yield
