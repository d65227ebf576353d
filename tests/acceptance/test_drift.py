"""Small trees with one drift each between a contract and its tests, and the twin in which it is mended.

The trees are others' (tests/data/README.md), what is expected of each stands in its ``expected.txt``; the
codes here were decided by hand from that, and from what the real ``cargo test`` and ``pytest`` do there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome
from tests.acceptance.test_drift_of_claims import CASES

DRIFT = Path(__file__).parents[1] / "data" / "drift"
CONTRACT = "contracts/c-v1.yaml"

EXPECTED: Mapping[str, list[str]] = {
    "d05-other-test-in-crate-wrong-module": ["test-not-found"],
    "d09b-right-binary-function-in-other-binary": ["test-not-found"],
    "s01-macro-generated-test": [],
    "s03-reexport-trait-alias": [],
    "s05-workspace-dash-underscore-toolchain": [],
    "w01a-orphan-rs-file-cargo": ["test-not-collected"],
    "w06-test-asserts-nothing": ["test-asserts-nothing"],
    "w11-nextest-idiom-filter": ["test-not-found"],
    "w13-feature-gated-without-feature": ["test-not-collected"],
    "w15-module-level-skip": ["test-ignored"] * 3,
    "w16-second-command": ["test-not-found"],
    "w18-pytest-k-gone": ["test-not-found"],
    "w21-cfg-quarantine": ["test-not-collected"],
    "w25-python-same-name-twice": ["test-not-collected"],
}
TWINS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "d05-other-test-in-crate-wrong-module": {CONTRACT: ("wrong_mod::tests", "tests")},
    "d09b-right-binary-function-in-other-binary": {CONTRACT: ("--test cli_commands", "--test other")},
    "w01a-orphan-rs-file-cargo": {"src/serve/mod.rs": ("pub fn s() {}", "mod tests_contract;")},
    "w06-test-asserts-nothing": {"tests/v.rs": ("assert!(true)", "assert_eq!(demo::add(1, 1), 2)")},
    "w11-nextest-idiom-filter": {CONTRACT: ("cargo test -p demo --", "cargo nextest run -p demo -E")},
    "w13-feature-gated-without-feature": {CONTRACT: ("-p demo", "-p demo --features api")},
    "w15-module-level-skip": {
        "tests/test_a.py": ("pytestmark = pytest.mark.skip", "unused = pytest.mark.skip"),
        "tests/test_b.py": ("@pytest.mark.skip\n", ""),
        "tests/test_c.py": ('pytest.skip("never", allow_module_level=True)', 'pytest.importorskip("json")'),
    },
    "w16-second-command": {CONTRACT: ("falsify_gone", "two_numbers")},
    "w18-pytest-k-gone": {CONTRACT: ("test_gone_entirely", "test_A")},
    "w21-cfg-quarantine": {"tests/q.rs": ("#[cfg(broken_tests)]", "#[cfg(test)]")},
    "w25-python-same-name-twice": {"tests/test_a.py": ("def __init__(self)", "def setup_method(self)")},
}


def check(name: str, root: Path, changes: Mapping[str, tuple[str, str]]) -> ValidationOutcome:
    shutil.copytree(DRIFT / name, root, dirs_exist_ok=True)
    for file, (before, after) in changes.items():
        text = (root / file).read_text(encoding="utf-8")
        assert before in text
        (root / file).write_text(text.replace(before, after), encoding="utf-8")
    return validate((root / "contracts",), cached=False)


def codes(outcome: ValidationOutcome) -> list[str]:
    return [one.problem.code for one in outcome.shown]


def test_every_vendored_tree_is_tried() -> None:
    of_claims = {case.name for case in CASES}
    assert set(EXPECTED) | of_claims == {path.name for path in DRIFT.iterdir()}
    assert set(TWINS) == {name for name, said in EXPECTED.items() if said}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_drift_is_told(tmp_path: Path, name: str) -> None:
    assert codes(check(name, tmp_path, {})) == EXPECTED[name]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("inner_fn", "inner_function"),
        ("fn go", "fn went"),
        ("Alias", "Other"),
        ("LIMIT", "LIMITS"),
        ("fn deep", "fn deeper"),
        ("mk_macro", "made"),
        ("fn new", "fn newer"),
    ],
)
def test_a_name_that_goes_from_a_silent_tree_is_missed(tmp_path: Path, before: str, after: str) -> None:
    found = codes(check("s03-reexport-trait-alias", tmp_path, {"src/lib.rs": (before, after)}))
    assert found
    assert set(found) == {"symbol-not-found"}


@pytest.mark.parametrize("name", TWINS)
def test_its_mended_twin_is_silent(tmp_path: Path, name: str) -> None:
    outcome = check(name, tmp_path, TWINS[name])
    assert codes(outcome) == []
    assert outcome.counts.resolved == outcome.counts.names > 0


RUST = {
    "Cargo.toml": '[package]\nname = "demo"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/lib.rs": "pub mod serve;\n#[cfg(test)]\nmod off { #[test]\n#[ignore]\nfn one() {} }\n",
    "src/serve/mod.rs": "pub fn s() {}\n#[test]\nfn falsify_here() { s(); }\n",
    "src/serve/tests_contract.rs": "#[test]\nfn falsify_srv_001() { assert!(1 + 1 == 2); }\n",
    "tests/gated.rs": '#![cfg(feature = "gpu")]\n#[test]\nfn on_gpu() { assert!(1 + 1 == 2); }\n',
    "Makefile": "falsify-srv:\n\tcargo test\n",
}
SKIPPED = "import pytest\npytestmark = pytest.mark.skip\n\ndef test_a(): ...\n"


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("src/serve/tests_contract.rs::falsify_srv_001", "test-not-collected"),
        ("falsify_srv_001", "test-not-collected"),
        ("src/serve/mod.rs::falsify_here", ""),
        ("falsify_here", ""),
        ("cargo test -p demo off::", "test-ignored"),
        ("cargo test -p demo off:: -- --include-ignored", ""),
        ("cargo test -p demo --test gated", "test-not-collected"),
        ("cargo test -p demo --lib falsify_here; pytest tests/test_skipped.py", "test-ignored"),
        ("cargo nextest run -p demo -E 'test(falsify_here)'", ""),
        ("cargo nextest run -p demo -E 'test(=falsify_here)'", "test-not-found"),
        ("cargo nextest run -p demo -E 'test(=serve::falsify_here) & kind(lib)'", ""),
        ("cargo nextest run -p demo -E 'package(demo) and test(/falsify_h.re$/)'", ""),
        ("cargo test -p demo 'falsify_*'", "test-not-found"),
        ("cargo test -p demo serve::falsify_here -- --exact", ""),
        ("cargo test -p demo falsify_here -- --exact", "test-not-found"),
        ("cargo test -p demo falsify -- --skip serve", "test-not-found"),
        ("cargo test -p demo <name>", ""),
        ("make falsify-srv", ""),
        ("make falsify-server", "test-not-found"),
        ("cargo test -p demo falsify_here | tee log && make falsify-gone", "test-not-found"),
    ],
)
def test_kinds_of_the_same_drift(tmp_path: Path, test: str, code: str) -> None:
    quoted = test.replace("'", "''")
    contract = (
        "metadata: {id: C-D, version: 1.0.0, status: ACTIVE, description: d}\nfalsification_tests:\n"
        f"- id: F-1\n  rule: r\n  prediction: p\n  if_fails: x\n  test: '{quoted}'\n"
    )
    for name, text in {**RUST, "tests/test_skipped.py": SKIPPED, CONTRACT: contract}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert codes(validate((tmp_path / "contracts",), cached=False)) == ([code] if code else [])
