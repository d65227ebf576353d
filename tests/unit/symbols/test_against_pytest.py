"""What reading finds of Python tests, against what the real ``pytest`` collects, chooses and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from apr_falsify.contracts.citations import citations
from apr_falsify.contracts.model import read_contract
from apr_falsify.contracts.resolution import ResolutionState
from apr_falsify.contracts.resolve_pytest import resolve_run
from apr_falsify.contracts.resolve_tests import resolve_test
from apr_falsify.contracts.roots import Roots, SearchScope
from apr_falsify.contracts.source import parse

FILES = {
    "pyproject.toml": (
        "[project]\nname = 'demo'\nversion = '1'\n[tool.pytest.ini_options]\n"
        "addopts = \"-m 'not slow'\"\nmarkers = ['slow', 'fast']\n"
    ),
    "tests/test_plain.py": (
        "import sys, unittest\nimport pytest\n\n"
        "def test_runs(): assert True\n\n"
        "@pytest.mark.slow\ndef test_slow(): assert True\n\n"
        "@pytest.mark.fast\ndef test_fast(): assert True\n\n"
        "@pytest.mark.skip\ndef test_bare_skip(): assert True\n\n"
        "@pytest.mark.skip(reason='x')\ndef test_skip(): assert True\n\n"
        "@pytest.mark.skipif(True, reason='x')\ndef test_skipif_true(): assert True\n\n"
        "@pytest.mark.skipif(False, reason='x')\ndef test_skipif_false(): assert True\n\n"
        "@pytest.mark.skipif(sys.version_info > (3,), reason='x')\ndef test_skipif_machine(): assert True\n\n"
        "@pytest.mark.xfail(run=False)\ndef test_not_run(): assert True\n\n"
        "@pytest.mark.xfail\ndef test_xfail(): assert False\n\n"
        "def test_begins_with_skip():\n    'Says why.'\n    pytest.skip('no')\n\n"
        "def test_twice(): assert False\n\ndef test_twice(): assert True\n\n"
        "@pytest.mark.parametrize('value', ['one', 'two'])\ndef test_cases(value): assert value\n\n"
        "class TestGroup:\n    def test_in_group(self): assert True\n"
        "    @pytest.mark.skip\n    def test_skipped_in_group(self): assert True\n\n"
        "@pytest.mark.skip\nclass TestSkipped:\n    def test_in_skipped(self): assert True\n\n"
        "class TestMarked:\n    pytestmark = [pytest.mark.skip(reason='x')]\n"
        "    def test_in_marked(self): assert True\n\n"
        "class TestHidden:\n    def test_hidden(self): assert True\n\n"
        "class TestHidden:\n    def test_seen(self): assert True\n\n"
        "@unittest.skip('x')\nclass TestCase(unittest.TestCase):\n    def test_of_case(self): ...\n\n"
        "class TestBuilt:\n    def __init__(self): ...\n    def test_built(self): ...\n"
    ),
    "tests/test_marked.py": (
        "import pytest\npytestmark = [pytest.mark.fast, pytest.mark.skip]\ndef test_marked(): ...\n"
    ),
    "tests/test_skips_itself.py": (
        "import pytest\npytest.skip('never', allow_module_level=True)\ndef test_in_skipping(): ...\n"
    ),
    "tests/test_imports.py": "import pytest\npytest.importorskip('os')\ndef test_imported(): ...\n",
    "tests/inner/test_deep.py": "def test_deep(): ...\n",
}  # fmt: skip
NODES = [
    f"tests/test_plain.py::{name}"
    for name in """
    test_runs test_slow test_fast test_bare_skip test_skip test_skipif_true test_skipif_false test_not_run
    test_xfail test_begins_with_skip test_twice test_cases TestGroup TestGroup::test_in_group
    TestGroup::test_skipped_in_group
    TestSkipped::test_in_skipped TestMarked::test_in_marked TestHidden::test_hidden TestHidden::test_seen
    TestCase::test_of_case TestBuilt::test_built test_nowhere
    """.split()  # noqa: SIM905 - words read best as words
] + [
    "tests/test_marked.py::test_marked",
    "tests/test_skips_itself.py::test_in_skipping",
    "tests/test_imports.py::test_imported",
    "tests/inner/test_deep.py::test_deep",
]
CHOICES = [
    "tests -k runs", "tests -k RUNS", "tests -k 'runs and slow'", "-k nowhere",
    "tests -k 'not test'", "tests -k 'in_group and not skipped'", "tests -k TestGroup", "tests -k plain",
    "tests -k inner", "tests/inner -k runs", "tests/inner -k deep", "tests -k fast", "tests -k bare_skip",
    "tests/test_plain.py -k hidden", "tests/test_plain.py -k '(runs or fast) and not (deep or slow)'",
    "tests/test_plain.py::TestGroup -k in_group", "tests/test_plain.py::TestGroup -k runs",
    "tests/test_marked.py -k marked", "tests -k two",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def really_runs(root: Path, *words: str) -> set[str]:
    """Node ids of which the real pytest runs the body, whatever becomes of it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:apr_falsify",
            "-v",
            "-rA",
            *words,
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
    )
    lines = re.findall(
        r"^(\S+::\S.*?) (PASSED|FAILED|XFAIL|XPASS)(?!.*\[NOTRUN\])", done.stdout, re.MULTILINE
    )
    return {node for node, _ in lines}


def answer(root: Path, command: str) -> tuple[ResolutionState, str]:
    """The worst of what is said of one command."""
    text = f"falsifiers:\n- id: F-1\n  test: {command!r}\n"
    data = parse("x.yaml", text.encode()).data
    contract = read_contract("x.yaml", data)  # type: ignore[arg-type]  # a mapping
    scope = SearchScope(root / "contracts" / "x.yaml", Roots({}))
    found = [
        resolve_run(one.run, scope) if one.run else resolve_test(one, scope)
        for one in citations(contract)
        if one.kind in ("run", "pytest")
    ]
    bad = [one for one in found if one.state is not ResolutionState.RESOLVED]
    return (bad or found)[0].state, (bad or found)[0].code


@pytest.fixture(scope="module")
def run_ids(project: Path) -> set[str]:
    return {node.partition("[")[0] for node in really_runs(project, "tests", "-k", "")}


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_right_where_pytest_runs_it(project: Path, run_ids: set[str], node: str) -> None:
    really = any(one == node or one.startswith(f"{node}::") for one in run_ids)
    assert (answer(project, f"pytest {node}")[0] is ResolutionState.RESOLVED) == really


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_right_where_pytest_runs_something(project: Path, choice: str) -> None:
    import shlex

    really = bool(really_runs(project, *shlex.split(choice)))
    state, code = answer(project, f"pytest {choice}")
    assert (state is ResolutionState.RESOLVED) == really or (
        state is ResolutionState.UNCHECKED and code == "test-not-checkable"
    )


def test_an_alternative_that_pytest_finds_nothing_for_is_missing(project: Path) -> None:
    """Pytest runs what fits one of them; a name that has gone is a drift all the same."""
    assert really_runs(project, "tests", "-k", "runs or nowhere")
    assert not really_runs(project, "tests", "-k", "nowhere")
    assert answer(project, "pytest tests -k 'runs or nowhere'")[0] is ResolutionState.MISSING
