"""For all tests: the ledger of skips, and a temporary directory that pytest removes."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Generator, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

# A shell starts a background job with Ctrl-C ignored, and its children inherit that. Tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

LEDGER = Path(__file__).parent / "skips.md"


def ledger() -> list[str]:
    """Return the reasons of the ledger, ``*`` standing for any text."""
    return re.findall(r"^\| `([^`]+)` \|", LEDGER.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _refuse_unlisted(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = said.removeprefix("Skipped: ")
    if not any(fnmatchcase(reason, known) for known in ledger()):
        report.outcome = "failed"
        report.longrepr = f"skipped for a reason that tests/{LEDGER.name} does not list: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_unlisted(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_unlisted(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory_of_pytest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests, and programs that they start, leave in the temporary directory out of the real one.

    The name is short: a browser puts a socket below it, whose path may have 107 bytes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)
        yield
