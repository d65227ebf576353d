"""What a claim is bound to: the code that its evidence names, and its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apr_falsify.contracts.claim import Claim, read_claims
from apr_falsify.evidence.binding import binding_of
from apr_falsify.symbols.digest import Project

ROOT = Path(__file__).parents[3]
SOURCES = {
    "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\n',
    "src/kernel.py": """
class Kernel:
    def run(self): return scale(1)
def scale(x): return x * FACTOR
FACTOR = 2
""",
    "src/other.py": "def other(): return 0\ndef another(): return 1\n",
    "src/lib.rs": "fn kernel() {}\n",
    "tests/test_kernel.py": """
import pytest
from kernel import Kernel
@pytest.mark.falsify_toy_001
def test_marked(): assert Kernel().run()
def test_named(): pass
class TestCase:
    @pytest.mark.falsify_toy_001(role="control")
    def test_control(self): pass
def unittest_style(): pass
""",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def claim(test: str = "", **evidence: Any) -> Claim:
    fields = {"id": "FALSIFY-TOY-001", "rule": "r", "prediction": "p", "test": test}
    if evidence:
        fields["algorithm_evidence"] = evidence
    return Claim(
        falsifier="FALSIFY-TOY-001",
        contract="C-TOY",
        version="1.0.0",
        path=Path("contracts/toy-v1.yaml"),
        rung="",
        fields=fields,
        pin=None,
        keys={},
    )


KERNEL = {"src/kernel.py::Kernel", "src/kernel.py::scale", "src/kernel.py::FACTOR"}
MARKED = {
    "tests/test_kernel.py::test_marked",
    "tests/test_kernel.py::TestCase.test_control",
    *KERNEL,
    "tests/test_kernel.py::TestCase",
}
BOUND: dict[str, tuple[Claim, set[str]]] = {
    "method": (
        claim(file_paths=["src/kernel.py"], function_names=["Kernel.run (what it promises)"]),
        {"src/kernel.py::Kernel.run", *KERNEL},
    ),
    "constant": (claim(file_paths=["src/kernel.py"], function_names=["FACTOR"]), {"src/kernel.py::FACTOR"}),
    "second file": (
        claim(file_paths=["src/kernel.py", "src/other.py"], function_names=["FACTOR", "other"]),
        {"src/kernel.py::FACTOR", "src/other.py::other"},
    ),
    "file of which nothing is named": (
        claim(file_paths=["src/other.py"]),
        {"src/other.py::other", "src/other.py::another"},
    ),
    "node id": (claim("pytest tests/test_kernel.py::test_named"), {"tests/test_kernel.py::test_named"}),
    "node id in a class": (
        claim("pytest tests/test_kernel.py::TestCase::test_control"),
        {"tests/test_kernel.py::TestCase.test_control", "tests/test_kernel.py::TestCase"},
    ),
    "marker": (claim("pytest -m falsify_toy_001"), MARKED),
    "marker and options": (claim("pytest -q -m falsify_toy_001 --gpu"), MARKED),
    "test without its file": (claim("test_named"), {"tests/test_kernel.py::test_named"}),
    "unittest": (
        claim("python -m unittest tests.test_kernel.unittest_style"),
        {"tests/test_kernel.py::unittest_style"},
    ),
}


@pytest.mark.parametrize(("one", "functions"), BOUND.values(), ids=list(BOUND))
def test_what_a_claim_names_is_bound_with_all_it_uses(root: Path, one: Claim, functions: set[str]) -> None:
    bound = binding_of(one, root)
    assert set(bound.functions) == functions
    assert bound.unbound == {}


UNBOUND: dict[str, tuple[Claim, str, str]] = {
    "rust": (
        claim(file_paths=["src/lib.rs"], function_names=["kernel"]),
        "src/lib.rs::kernel",
        "is no Python; only that is bound",
    ),
    "another repository": (
        claim(file_paths=["aprender:src/lib.rs"], function_names=["aprender:kernel"]),
        "aprender:src/lib.rs::kernel",
        "is of another repository: aprender",
    ),
    "cargo": (claim("cargo test -p x y"), "cargo test -p x y", "is a test of Rust; only Python is bound"),
    "no such file": (
        claim(file_paths=["src/gone.py"], function_names=["f"]),
        "src/gone.py::f",
        "its file is not in the project",
    ),
    "no such function": (
        claim(file_paths=["src/kernel.py"], function_names=["gone"]),
        "src/kernel.py::gone",
        "no cited file defines it",
    ),
    "no such test": (
        claim("pytest tests/test_kernel.py::test_gone"),
        "tests/test_kernel.py::test_gone",
        "its file does not define it",
    ),
    "no test with the marker": (
        claim("pytest -m falsify_toy_002"),
        "pytest -m falsify_toy_002",
        "no test carries the marker",
    ),
    "expression": (
        claim("pytest -m 'a and b'"),
        "pytest -m a and b",
        "is an expression over several markers",
    ),
    "by keyword": (
        claim("pytest -k 'one or two'"),
        "pytest -k one or two",
        "chooses tests by their names; only tests that are named are bound",
    ),
    "outside": (claim(file_paths=["../outside.py"]), "../outside.py", "is no file of this project"),
}


@pytest.mark.parametrize(("one", "name", "why"), UNBOUND.values(), ids=list(UNBOUND))
def test_what_cannot_be_bound_is_told_with_the_reason(root: Path, one: Claim, name: str, why: str) -> None:
    bound = binding_of(one, root)
    assert bound.unbound.get(name) == why


def test_a_comment_leaves_it_and_a_line_changes_it(root: Path) -> None:
    one = claim("pytest -m falsify_toy_001")
    before = binding_of(one, root)
    kernel = root / "src" / "kernel.py"
    kernel.write_text("# why\n" + kernel.read_text().replace("FACTOR = 2", "FACTOR = 2  # twice"))
    assert binding_of(one, root) == before
    kernel.write_text(kernel.read_text().replace("FACTOR = 2", "FACTOR = 3"))
    after = binding_of(one, root)
    changed = {name for name in before.functions if before.functions[name] != after.functions.get(name)}
    assert changed == {"src/kernel.py::FACTOR"}


def test_our_own_contracts_are_bound_but_for_what_is_of_other_repositories() -> None:
    project = Project(ROOT)
    for contract in sorted((ROOT / "contracts").glob("*-v1.yaml")):
        for one in read_claims(contract):
            bound = binding_of(one, ROOT, project)
            left = {name: why for name, why in bound.unbound.items() if name not in bound.functions}
            assert {why for why in left.values() if "another repository" not in why} == set(), one.falsifier
            if "test" in one.fields and "::" in str(one.fields["test"]):
                assert bound.functions, one.falsifier


def test_every_claim_is_bound_alike_whether_the_project_was_read_before_or_not() -> None:
    first, *_ = read_claims(ROOT / "contracts" / "trace-attn-sub-stages-v1.yaml")
    assert binding_of(first, ROOT) == binding_of(first, ROOT, Project(ROOT))
