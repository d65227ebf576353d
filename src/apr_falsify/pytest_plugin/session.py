"""The part of the plugin that works, registered where the project is configured.

1. Configured: contracts are read, markers registered, the lane checked; what is wrong ends the session.
2. Collected: every test that carries a marker is noted, with what it decides.
3. Run: every report is noted. Under pytest-xdist 1 to 3 happen in each worker, and the controller reads what
   the workers collected from the shared folder, and their reports.
4. Finished: outcomes, bundles, exit code, the summary.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.commands.lanes import missing_for
from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.outcome import Level
from apr_falsify.folders import sweep, write_whole, writer
from apr_falsify.pytest_plugin import fixtures, markers, observe
from apr_falsify.pytest_plugin.measuring import Measurements
from apr_falsify.pytest_plugin.options import SessionOptions, read_session_options
from apr_falsify.pytest_plugin.project import SESSION, configured_root
from apr_falsify.pytest_plugin.records import Collected, Ledger
from apr_falsify.pytest_plugin.scope import is_whole_suite, untested
from apr_falsify.pytest_plugin.shared import WORKER_INPUT, Shared
from apr_falsify.pytest_plugin.state import CARRIED, Work

_PROBE = ".apr-falsify-"


def register(config: pytest.Config) -> None:
    """Read what the session works with and register the hooks.

    Raises:
        pytest.UsageError: a broken contract, an unknown lane, something that the lane lacks, an evidence
            directory that cannot be written to, or a Python that leaves assertions out.

    """
    root = configured_root(config.rootpath)
    assert root is not None
    is_worker = hasattr(config, "workerinput")
    _check_assertions()
    try:
        options = read_session_options(config, root)
        claims = markers.claims_by_marker(options)
        markers.register(config, claims)
        if not is_worker and not _only_tells(config):
            _check_lane(options)
            _check_writable(options.evidence_dir)
    except AprFalsifyError as error:
        raise pytest.UsageError(str(error)) from error
    shared = Shared(config)
    measurements = Measurements(shared)
    work = Work(
        options=options, claims=claims, shared=shared, measurements=measurements, started_ns=time.time_ns()
    )
    config.pluginmanager.register(Session(work, config), SESSION)
    config.pluginmanager.register(fixtures, "apr_falsify_fixtures")
    config.pluginmanager.register(observe, "apr_falsify_observe")


def _check_assertions() -> None:
    """Refuse ``python -O``: outside of test files it leaves out assertions, and what fails would pass."""
    if sys.flags.optimize:
        raise pytest.UsageError(
            "Python runs with -O or PYTHONOPTIMIZE, which leaves assertions out: a falsifier would survive "
            "what refutes it\n  try: env -u PYTHONOPTIMIZE pytest, without -O"
        )


def _only_tells(config: pytest.Config) -> bool:
    """Whether pytest only tells about itself: ``--markers``, ``--fixtures``."""
    return any(
        config.getoption(name, False) for name in ("markers", "showfixtures", "show_fixtures_per_test")
    )


def _check_lane(options: SessionOptions) -> None:
    if not options.lane.is_live:
        return
    missing = missing_for(options.lane)
    if missing:
        option = "--gpu" if options.gpu else "--lane" if options.lane.name != "unnamed" else "--subject"
        lines = [f"{option}: the lane {options.lane.name} cannot be run on this machine"]
        for one in missing:
            lines += [f"  {one.what}", f"    get it: {one.remedy}"]
        raise pytest.UsageError("\n".join(lines))


def _check_writable(folder: Path | None) -> None:
    if folder is None:
        return
    if os.path.lexists(folder) and not folder.is_dir():
        words = f"{folder} is there already, and no folder\n  try: another folder"
        raise pytest.UsageError(f"--evidence-dir: {words}")
    probe = folder / f"{_PROBE}{writer(os.getpid())}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, _PROBE)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise pytest.UsageError(
            f"--evidence-dir: {folder} cannot be written to: {error.strerror}\n  try: another folder"
        ) from error


class Session:
    """The hooks of one process.

    Args:
        work: what the session works with.
        config: pytest's configuration.

    """

    def __init__(self, work: Work, config: pytest.Config) -> None:
        self.work = work
        self._config = config
        self._worker: str | None = getattr(config, "workerinput", {}).get("workerid")
        self._ledger = Ledger()
        self._made: list[pytest.Item] = []
        self._items: list[pytest.Item] = []
        self._waiting: set[pytest.Item] = set()
        self._checked = False
        self._summary: list[str] = []

    # 2. collected

    @pytest.hookimpl(wrapper=True)
    def pytest_pycollect_makeitem(self) -> Generator[None, Any, Any]:
        """Refuse a marker that no contract has, or that has other arguments, where it is collected."""
        made = yield
        for item in made if isinstance(made, list) else [made]:
            if isinstance(item, pytest.Item):
                item.stash[CARRIED] = markers.carried_by(item, self.work.claims)
                self._made.append(item)  # of a node id that names one parameter the others are never items
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Offer the nearest falsifier where strict markers refuse one."""
        report = yield
        found = re.search(r"'(falsify_\w+)' not found in `markers`", report.longreprtext)
        if report.failed and found:
            report.longrepr = f"{report.longreprtext}\n{markers.unknown(found[1], self.work.claims)}"
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """Note every test before others choose among them; those that need a lane wait for one."""
        collected = [*self._made, *items]
        yield
        for item in dict.fromkeys([*collected, *items]):
            self._carry(item)
            if item.stash[CARRIED]:
                item.add_marker(_RETURNS_NOTHING)
                self._items.append(item)
        if not self.work.options.lane.is_live:
            self._waiting = {item for item in self._items if _is_live(item)}
            left_out = [item for item in items if item in self._waiting]
            if left_out:
                items[:] = [item for item in items if item not in self._waiting]
                config.hook.pytest_deselected(items=left_out)

    def _carry(self, item: pytest.Item) -> None:
        """Read the markers again: a conftest may have added some meanwhile."""
        try:
            item.stash[CARRIED] = markers.carried_by(item, self.work.claims)
        except pytest.Collector.CollectError as error:
            raise pytest.UsageError(str(error)) from error

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which tests were chosen; a worker leaves that in the shared folder."""
        chosen = set(session.items)
        tests = [one for item in self._items for one in self._noted(item, item in chosen)]
        if self._worker is None:
            self._ledger.add_collected(tests)
            self._check_untested(session.testsfailed > 0)
        else:
            found = {"errors": session.testsfailed, "tests": [one.to_json() for one in tests]}
            path = self.work.shared.path / f"collected-{self._worker}.json"
            write_whole(path, json.dumps(found).encode("utf-8"))

    def _noted(self, item: pytest.Item, chosen: bool) -> Iterator[Collected]:
        for one in item.stash[CARRIED]:
            yield Collected(
                name=item.nodeid,
                falsifier=one.falsifier,
                role=one.role,
                level=one.level,
                selected=chosen,
                waits=item in self._waiting,
            )

    def _check_untested(self, failed: bool) -> None:
        """Refuse a whole suite in which a falsifier has no test.

        Raises:
            pytest.UsageError: there is one.

        """
        if self._checked or failed or _only_tells(self._config) or not is_whole_suite(self._config):
            return
        self._checked = True
        lacking = untested(self.work.claims, self._ledger.falsifiers)
        if lacking:
            raise pytest.UsageError(
                "\n".join(["the whole suite was collected, and no test carries the marker of", *lacking])
            )

    # under pytest-xdist, in the controller

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the shared folder is."""
        node.workerinput[WORKER_INPUT] = str(self.work.shared.path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """Read what a worker collected."""
        self._check_untested(self._read_collected(node.gateway.id) > 0)

    def _read_collected(self, worker: str) -> int:
        path = self.work.shared.path / f"collected-{worker}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 1  # it ended before it had collected
        self._ledger.add_collected([Collected.from_json(one) for one in found["tests"]])
        return int(found["errors"])

    # 3. run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of a test ended."""
        if self._worker is None:
            self._ledger.add_report(report)

    # 4. finished

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Sum up; a session whose falsifiers were all not run does not pass."""
        if self._config.getoption("collectonly", False):
            return
        if self._worker is not None:
            if self.work.options.evidence_dir is not None:
                self.work.shared.tell_imported(self._worker)
            return
        from apr_falsify.pytest_plugin.finish import finish

        done = finish(self.work, self._ledger, self._config)
        self._summary = done.lines
        if done.exit_code and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = done.exit_code

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary of falsifiers."""
        if self._summary:
            terminalreporter.section("falsifiers")
            for line in self._summary:
                terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Remove the shared folder."""
        self.work.shared.remove()


_RETURNS_NOTHING = pytest.mark.filterwarnings("error::pytest.PytestReturnNotNoneWarning")
"""What a test of a falsifier that returns a comparison, and asserts nothing, would pass without."""


def _is_live(item: pytest.Item) -> bool:
    return all(one.level is Level.LIVE for one in item.stash[CARRIED])
