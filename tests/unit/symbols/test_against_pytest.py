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
from tests.sampling import one_in

STATED = """
import enum, sys, unittest
from typing import TYPE_CHECKING
import pytest
parked = pytest.mark.skip(reason="x")
posix = pytest.mark.skipif(sys.platform == "nowhere", reason="x")
VALUES = ["k1", "k2"]
class Color(enum.Enum):
    RED = 1
@parked
def test_parked_by_name(): ...
@posix
def test_posix_by_name(): ...
@pytest.mark.skipif("True", reason="x")
def test_true_in_text(): ...
@pytest.mark.skipif(1 == 1 and not False, reason="x")
def test_true_in_words(): ...
@pytest.mark.skipif(1 == 2, reason="x")
def test_false_in_words(): ...
def test_skips_behind():
    value = 1
    pytest.skip(f"not yet {value}")
def test_may_skip():
    if sys.platform == "nowhere":
        pytest.skip("no")
@pytest.mark.parametrize("n", [])
def test_no_values(n): ...
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.skip), pytest.param(2, marks=parked)])
def test_every_case_off(n): ...
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.skip), 2])
def test_a_case_off(n): ...
class Common:
    def test_inherited(self): ...
class TestHeir(Common):
    def test_of_heir(self): ...
@pytest.mark.skip
class TestOffBase:
    def test_off_in_base(self): ...
class TestOffHeir(TestOffBase):
    def test_off_in_heir(self): ...
class TestSetUp:
    def setup_method(self): pytest.skip("no")
    def test_set_up(self): ...
class TestAutouse:
    @pytest.fixture(autouse=True)
    def never(self): pytest.skip("no")
    def test_autouse(self): ...
class CaseSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("no")
    def test_case_set_up(self): ...
class TestWithProperty:
    @property
    def test_property(self): return 1
    def test_beside_property(self): ...
if False:
    def test_under_false(): ...
else:
    def test_under_else(): ...
if TYPE_CHECKING:
    def test_for_types(): ...
def test_deleted(): ...
del test_deleted
def test_replaced(): ...
test_replaced = None
def test_switched_off(): ...
test_switched_off.__test__ = False
def helper(): ...
test_renamed = helper
@pytest.mark.parametrize("k", VALUES)
def test_of_constant(k): ...
@pytest.mark.parametrize("n", range(2))
class TestOfRange:
    @pytest.mark.parametrize("m", ["a", b"raw"])
    def test_in_range(self, n, m): ...
@pytest.mark.parametrize("n", [5, 6], ids=["five", None])
def test_ids(n): ...
@pytest.mark.parametrize("c", [Color.RED, len])
def test_of_objects(c): ...
"""
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
    "tests/test_stated.py": STATED,
    "tests/test_not_tests.py": "__test__ = False\ndef test_not_one(): ...\n",
    "tests/conftest.py": "collect_ignore = ['test_left.py']\ncollect_ignore_glob = ['*_old.py']\n",
    "tests/test_left.py": "def test_left_out(): ...\n",
    "tests/test_one_old.py": "def test_of_old(): ...\n",
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
    *(
        f"tests/test_stated.py::{name}"
        for name in """
        test_parked_by_name test_posix_by_name test_true_in_text test_true_in_words test_false_in_words
        test_skips_behind test_may_skip test_no_values test_every_case_off test_a_case_off
        TestHeir::test_inherited TestHeir::test_of_heir TestOffHeir::test_off_in_base
        TestOffHeir::test_off_in_heir TestSetUp::test_set_up TestAutouse::test_autouse
        CaseSetUp::test_case_set_up TestWithProperty::test_property TestWithProperty::test_beside_property
        test_under_false test_under_else test_for_types test_deleted test_replaced test_switched_off
        test_renamed test_of_constant TestOfRange::test_in_range
        test_of_constant[k1] test_of_constant[k9] TestOfRange::test_in_range[a-0]
        TestOfRange::test_in_range[raw-1] TestOfRange::test_in_range[0-a] TestOfRange::test_in_range[a-2]
        test_ids[five] test_ids[6] test_ids[5] test_a_case_off[1] test_a_case_off[2]
        """.split()  # noqa: SIM905 - words read best as words
    ),
    "tests/test_not_tests.py::test_not_one",
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
    "tests/test_marked.py -k marked", "tests -k two", "-k left_out", "-k of_old", "-k test_not_one",
    "tests -k runs --ignore-glob='tests/test_pl*.py'", "tests -k under_false", "-k inherited",
    "tests/test_stated.py -k color", "-k test_gone_for_good", "tests/test_plain.py -m 'slow and fast'",
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
    found = really_runs(project, "tests", "-k", "")
    return found | {node.partition("[")[0] for node in found}


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_right_where_pytest_runs_it(project: Path, run_ids: set[str], node: str) -> None:
    really = any(one == node or one.startswith(f"{node}::") for one in run_ids)
    assert (answer(project, f"pytest {node}")[0] is ResolutionState.RESOLVED) == really


@pytest.mark.parametrize("choice", one_in(3, CHOICES))
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
