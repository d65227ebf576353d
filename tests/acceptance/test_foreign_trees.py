"""Trees of other projects, in other habits: where contract and source agree, nothing is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome

HEAD = "metadata: {id: C-X, version: 1.0.0, description: d}\n"

PYTHON = {
    "backend/pyproject.toml": "[tool.pytest.ini_options]\npython_functions = ['test_*', 'check_*']\n",
    "backend/app/__init__.py": "from app.core import *\nfrom app.core import run as start\n",
    "backend/app/core.py": (
        "from dataclasses import dataclass\nfrom enum import Enum\nimport torch.nn as nn\n\n"
        "class Colour(Enum):\n    RED = 1\n\n@dataclass\nclass Point:\n    x: int\n\n"
        "class Net(nn.Module):\n    def forward(self): ...\n\n"
        "class Base:\n    def shared(self): ...\n\nclass Child(Base):\n    limit = 3\n\n"
        "if True:\n    def run(): ...\nelse:\n    def run(): ...\n\nalias = run\n"
    ),
    "backend/tests/test_core.py": (
        "import unittest\nfrom tests.shared import Checks\n\nclass TestCore(unittest.TestCase):\n"
        "    def test_a(self): ...\n\nclass TestMore(Checks):\n    pass\n\ndef check_b(): ...\n"
    ),
    "backend/tests/shared.py": "class Checks:\n    def test_from_base(self): ...\n",
    "scripts/check.sh": "main() { true; }\n",
}
RUST = {
    "Cargo.toml": "[workspace]\nmembers = ['crates/*']\n",
    "crates/engine/Cargo.toml": '[package]\nname = "my-engine"\n',
    "crates/engine/src/lib.rs": 'pub mod attn;\npub use attn::*;\n#[path = "odd_place.rs"]\nmod odd;\n',
    "crates/engine/src/odd_place.rs": "pub fn odd() {}\n",
    "crates/engine/src/attn/mod.rs": (
        "#[derive(Debug, Default, Clone)]\npub struct Head<T> { pub dim: T }\n"
        "impl<T> Head<T> { pub const MAX: usize = 1; pub fn scores(&self) {} }\n"
        "pub trait Layer { fn run(&self) {} }\nimpl<T> Layer for Head<T> {}\n"
        'include!("softmax.rs");\nmake_kernels!(kernel_q4, kernel_q8);\n'
        "#[cfg(test)]\nmod tests {\n    #[test]\n    fn scores_are_scaled() {}\n"
        "    proptest! {\n        #[test]\n        fn rows_sum_to_one(x in 0..9) { }\n    }\n}\n"
    ),
    "crates/engine/src/attn/softmax.rs": "pub fn softmax() {}\n",
    "crates/engine/tests/end_to_end.rs": "#[tokio::test]\nasync fn whole_run() {}\n",
}


def falsifier(evidence: str, test: str = "by hand") -> str:
    head = f"falsification_tests:\n- id: F-1\n  rule: r\n  status: PARTIAL\n  test: {test!r}\n"
    return f"{head}  algorithm_evidence: {evidence}\n"


def check(
    root: Path, files: dict[str, str], contract: str, where: str = "contracts/x-v1.yaml"
) -> ValidationOutcome:
    for name, text in {**files, where: HEAD + contract}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return validate((root / where,), cached=False)


def reported(outcome: ValidationOutcome) -> list[str]:
    return [f"{one.problem.code} {one.problem.message}" for one in outcome.shown]


def files(path: str, *names: str) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f"{{file_paths: ['{path}'], function_names: [{listed}]}}"


@pytest.mark.parametrize(
    "evidence",
    [
        files(
            "backend/app/core.py",
            "Colour.RED",
            "Point.__init__",
            "Point.x",
            "Net.forward",
            "Child.shared",
            "run",
        ),
        files(
            "backend/app/core.py", "Colour.RED.value (the number)", "alias", "Child.limit", "Net.parameters"
        ),
        files("backend/app/__init__.py", "start", "Child", "Point"),
        files("backend/app/core.py:12-20", "app.core.run", "def run()", "`Child` — the heir"),
        files("backend/app", "run", "Child.shared"),
        files("backend/app/*.py", "run"),
        files("scripts/check.sh  (CI only)", "main"),
        "[backend/app/core.py, 'run (the entry)', 'sums in f64, see Net', 'Child::shared']",
        "{files: {backend/app/core.py: [run, Net], scripts/check.sh: [main]}}",
        "[{file: backend/app/core.py, functions: [run]}, {file: scripts/check.sh}]",
    ],
)
def test_python_evidence_that_agrees_is_not_reported(tmp_path: Path, evidence: str) -> None:
    outcome = check(tmp_path, PYTHON | {".git/HEAD": ""}, falsifier(evidence))
    assert reported(outcome) == []
    assert outcome.counts.resolved > 0


@pytest.mark.parametrize(
    "test",
    [
        "cd backend && pytest tests/test_core.py::TestCore::test_a -q",
        "pytest backend/tests/test_core.py::TestMore::test_from_base",
        "pytest backend/tests/test_core.py::check_b[1-a]",
        "(cd backend; python -m pytest tests/test_core.py)",
        "python -m unittest backend.tests.test_core.TestCore.test_a",
        "bash scripts/check.sh --fast out/made.json",
        "npm test -- stage; go test ./...",
        "make check && ls -la build/out.bin",
    ],
)
def test_python_tests_that_agree_are_not_reported(tmp_path: Path, test: str) -> None:
    outcome = check(
        tmp_path, PYTHON | {".git/HEAD": ""}, falsifier(files("backend/app/core.py", "run"), test)
    )
    assert reported(outcome) == []


def test_paths_may_be_relative_to_a_project_inside_the_repository(tmp_path: Path) -> None:
    text = falsifier(files("app/core.py", "run"), "pytest tests/test_core.py::TestCore::test_a")
    assert reported(check(tmp_path, PYTHON | {".git/HEAD": ""}, text, "backend/contracts/x-v1.yaml")) == []


@pytest.mark.parametrize(
    "evidence",
    [
        files(
            "crates/engine/src/attn/mod.rs",
            "Head",
            "Head::scores",
            "Head::MAX",
            "Head::default",
            "Head::run",
            "Head.dim",
        ),
        files("crates/engine/src/lib.rs", "softmax", "attn::Head::scores", "odd", "Layer::run", "kernel_q4"),
        files(
            "crates/engine/src/attn/mod.rs",
            "my_engine::attn::softmax",
            "engine::attn::Head<T>",
            "rows_sum_to_one",
        ),
        files("crates/{engine}/src/attn/softmax.rs", "softmax"),
        files("crates/{engine/src/attn/softmax,engine/src/lib}.rs", "pub fn softmax()"),
    ],
)
def test_rust_evidence_that_agrees_is_not_reported(tmp_path: Path, evidence: str) -> None:
    outcome = check(tmp_path, RUST, falsifier(evidence))
    assert reported(outcome) == []


@pytest.mark.parametrize(
    "test",
    [
        "cargo test -p my-engine --lib attn::tests::scores_are_scaled",
        "cargo test -p my-engine rows_sum (3/3 PASS)",
        "cargo test --workspace --all-features",
        "cargo test -p my-engine --test end_to_end -- whole_run --exact",
        "RUST_BACKTRACE=1 cargo test attn::",
        "attn::tests::scores_are_scaled",
        "cargo bench -p my-engine",
    ],
)
def test_rust_tests_that_agree_are_not_reported(tmp_path: Path, test: str) -> None:
    outcome = check(tmp_path, RUST, falsifier(files("crates/engine/src/lib.rs", "odd"), test))
    assert reported(outcome) == []


@pytest.mark.parametrize(
    ("evidence", "test", "code"),
    [
        (files("crates/engine/src/attn/mod.rs", "Head::score"), "by hand", "symbol-not-found"),
        (files("crates/engine/src/attn/mod.rs", "Tail::scores"), "by hand", "symbol-not-found"),
        (files("crates/engine/src/odd_place.rs", "softmax"), "by hand", "symbol-not-in-file"),
        (files("crates/engine/src/attn/soft.rs", "softmax"), "by hand", "file-not-found"),
        (
            files("crates/engine/src/lib.rs", "odd"),
            "cargo test -p my-engine attn::tests::scores_scaled",
            "test-not-found",
        ),
        (files("crates/engine/src/lib.rs", "odd"), "cargo test -p my-engin attn", "test-not-found"),
        (
            files("crates/engine/src/lib.rs", "odd"),
            "cargo test -p my-engine --test end_to_ends",
            "test-not-found",
        ),
        (
            "[crates/engine/src/lib.rs, 'oddly (gone)', 'odd_thing_gone — was here']",
            "by hand",
            "symbol-not-found",
        ),
    ],
)
def test_rust_drift_is_reported(tmp_path: Path, evidence: str, test: str, code: str) -> None:
    outcome = check(tmp_path, RUST, falsifier(evidence, test))
    assert {one.problem.code for one in outcome.shown} == {code}


@pytest.mark.parametrize(
    ("evidence", "test", "code"),
    [
        (files("backend/app/core.py", "Net.forwards"), "by hand", "symbol-not-found"),
        (files("backend/app/core.py", "Colour.GREEN"), "by hand", "symbol-not-found"),
        (files("backend/app/core.py", "Child.divided"), "by hand", "symbol-not-found"),
        (
            files("backend/app/core.py", "run"),
            "cd backend && pytest tests/test_core.py::TestCore::test_z",
            "test-not-found",
        ),
        (files("backend/app/core.py", "run"), "pytest backend/tests/test_cores.py", "file-not-found"),
        (files("backend/app/core.py", "run"), "bash scripts/checks.sh", "file-not-found"),
    ],
)
def test_python_drift_is_reported(tmp_path: Path, evidence: str, test: str, code: str) -> None:
    outcome = check(tmp_path, PYTHON | {".git/HEAD": ""}, falsifier(evidence, test))
    assert {one.problem.code for one in outcome.shown} == {code}


@pytest.mark.parametrize(
    "more",
    [
        "equations:\n  e:\n    formula: 'shape = [batch, tokens, head]'\n    where: ['32 stages, all']\n",
        "equations:\n  e:\n    where: ['2 stages: x and y', '3 values: 0.1, 0.2', '4 steps: a, ...']\n",
        "depends_on: [scikit-learn, 'python-dotenv >= 1', 'a sentence about it']\n",
        "verification_summary: {total_obligations: 0}\n",
        "implementation: elsewhere/src/far.rs::thing\n",
    ],
)
def test_what_is_not_certainly_wrong_is_no_error(tmp_path: Path, more: str) -> None:
    outcome = check(tmp_path, RUST, falsifier(files("crates/engine/src/lib.rs", "odd")) + more)
    assert [one.problem.code for one in outcome.shown if one.severity == "error"] == []


@pytest.mark.parametrize(
    "status",
    [
        "FUNCTIONAL (4/4)\n  live_evidence: [Cargo.toml]",
        "functional\n  live_evidence: [Cargo.toml]",
        "in progress",
        "Blocked-Upstream",
        "PARTIAL — live run pending",
        "Holds for all shapes",
    ],
)
def test_status_words_of_the_wild_are_known(tmp_path: Path, status: str) -> None:
    text = falsifier(files("crates/engine/src/lib.rs", "odd")).replace("status: PARTIAL", f"status: {status}")
    assert reported(check(tmp_path, RUST, text)) == []
