"""Kinds of drift between a contract and the tests that its commands run, each beside its valid twin.

What each command runs was decided by hand from the documentation of cargo, nextest, rstest, test_case,
pytest, make, just, nox and tox. All falsifiers of a table stand in one contract, so that a table is one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from tests.acceptance.kinds_trees import PROJECT, WORKSPACE

GONE, OFF, IGNORED, FILE = "test-not-found", "test-not-collected", "test-ignored", "file-not-found"
NEXTEST = "cargo nextest run --workspace -E"
RUST: Mapping[str, str] = {
    "cargo test -p kv-engine product_commutes": "",
    "cargo test -p kv-engine checks::product_commutes::case_1 -- --exact": "",
    "cargo test -p kv-engine product_commutes::case_2_big": "",
    "cargo test -p kv-engine product_commutes::case_3": GONE,
    "cargo test -p kv-engine checks::product_commutes -- --exact": GONE,
    "cargo test -p kv-engine product_of_values::a_1_1": "",
    "cargo test -p kv-engine product_by_table::two_and_three": "",
    "cargo test -p kv-engine product_by_table::four": GONE,
    "cargo test -p kv-engine product_unnamed::_1_1": "",
    "cargo test -p kv-engine checks::prop_zero -- --exact": "",
    "cargo test -p kv-engine checks::awaits_twice -- --exact": "",
    "cargo test -p kv-engine awaits_twice -- --exact": GONE,
    "cargo test -p kv-engine on_gpu_only": IGNORED,
    "cargo test -p kv-engine --features gpu on_gpu_only": "",
    "cargo test -p kv-engine parked": IGNORED,
    "cargo test -p kv-engine parked -- --include-ignored": "",
    "cargo test -p kv-engine says_nothing": "test-asserts-nothing",
    "cargo test -p kv-engine any_of_none": OFF,
    "cargo test -p kv-engine ring::turns_round": "",
    "cargo test -p kv-engine place::turns_round": GONE,
    "cargo test -p kv-engine launches": OFF,
    "cargo test --workspace --all-features launches": "",
    "cargo test -p kv-engine stray_test": OFF,
    "cargo test -p kv-engine made::law_of_two": "",
    "cargo test -p kv-engine made::law_of_three": GONE,
    "cargo test -p kv-engine --test flow helpers::helper_checked": "",
    "cargo test -p kv-engine --test helpers": GONE,
    "cargo test -p bench-tool --test smoke smokes": "",
    "cargo test -p bench-tool forgotten_one": OFF,
    "cargo test --manifest-path tools/bench/Cargo.toml parses_nothing": GONE,
    "cd engine && cargo test evicts_oldest; cargo test evicts_never": GONE,
    "bash -lc 'cd engine && cargo test evicts_never'": GONE,
    "`cargo test -p kv-engine NAME` exits 0": "",
    "cargo test passes on every machine": "",
    "cargo test -p kv-engine evicts_never passes": GONE,
    f"{NEXTEST} 'package(kv-engine) and test(evicts_oldest)'": "",
    f"{NEXTEST} 'package(kv-engin) and test(evicts_oldest)'": GONE,
    f"{NEXTEST} 'kind(test) and test(evicts_oldest)'": GONE,
    f"{NEXTEST} 'binary(kv_engine) and not test(parked) & test(/^cache::tests::evicts_(old|new)est$/)'": "",
    f"{NEXTEST} 'test(/^evicts_(old|new)est$/)'": GONE,
    f"{NEXTEST} 'test(#cache::*::{{evicts,drops}}_[a-o]*)'": "",
    f"{NEXTEST} 'test(#evicts_*)'": GONE,
    f"{NEXTEST} 'binary_id(kv-engine::flow) + binary_id(bench-tool::bin/bench-tool)'": "",
    f"{NEXTEST} 'binary_id(kv-engine::flood)'": GONE,
    f"{NEXTEST} 'test(evicts) - test(oldest)'": GONE,
    f"{NEXTEST} 'test(evicts_never) or test(evicts_oldest)'": GONE,
    f"{NEXTEST} 'test(evicts_oldest)' -E 'test(evicts_never)'": GONE,
    f"{NEXTEST} 'package(kv-engine)' -- smokes": GONE,
    f"{NEXTEST} 'package(bench-tool)' -- smokes": "",
    f"{NEXTEST} 'test(product_by_table::ones)'": "",
    f"{NEXTEST} 'test(=cache::tests::evicts\\u{{5f}}oldest)'": "",
    f"{NEXTEST} 'deps(kv-engine) and platform(host)'": "",
    f"{NEXTEST} 'test(evicts'": "test-not-checkable",
    f"{NEXTEST} 'tests(evicts_oldest)'": "test-not-checkable",
}
FLOW = "pytest checks/test_flow.py"
PYTHON: Mapping[str, str] = {
    f"{FLOW}::test_adds[small]": "",
    f"{FLOW}::test_adds[huge]": GONE,
    f"{FLOW}::test_counts[-2]": "",
    f"{FLOW}::test_counts[n5]": "",
    f"{FLOW}::test_counts[7]": GONE,
    f"{FLOW}::test_pairs[three-1]": "",
    f"{FLOW}::test_pairs[1-three]": GONE,
    f"{FLOW}::test_with_fixture[made-1]": "",
    f"{FLOW}::TestPipe::TestInner::test_deep": "",
    f"{FLOW}::TestPipe::test_deep": GONE,
    f"{FLOW}::TestPipe::test_closes": IGNORED,
    f"{FLOW}::TestParked": IGNORED,
    f"{FLOW}::TestCaseOff::test_unit_parked": IGNORED,
    f"{FLOW}::test_on_posix": "",
    "pytest -k small": "",
    "pytest -k 'opens and not closes'": "",
    "pytest -k 'small and big'": GONE,
    "pytest -k 'test_opens or test_gone_for_good'": GONE,
    "pytest -k test_elsewhere": GONE,
    "pytest other -k test_elsewhere": "",
    "pytest -k test_closes": IGNORED,
    "pytest checks -k test_opens --ignore=checks/test_flow.py": GONE,
    "pytest checks/test_marks.py -m 'not gpu'": GONE,
    f"{FLOW}::test_adds && {FLOW}::test_subtracts": GONE,
    "uv run --with pytest pytest checks/test_flow.py::test_addz": GONE,
    "coverage run -m pytest checks/test_flow.py::test_addz": GONE,
    "bash -lc 'cd checks && pytest test_flow.py::test_adds'": "",
    "bash -lc 'cd checks && pytest test_flow.py::test_addz'": GONE,
    "make check": "",
    "make check-gone": GONE,
    "make check-via": GONE,
    "make check-var": GONE,
    "make check-again": GONE,
    "make check-shell": "",
    "just verify-flow": "",
    "just verify-gone": GONE,
    "just verify-both": GONE,
    "just verify-arg": "",
    "tox -e py311": "",
    "tox run -e lint,gone": FILE,
    "tox -e nowhere": GONE,
    "nox -s flow_checks": "",
    "nox -s flow_checks gone-checks": FILE,
    "bash scripts/verify.sh": "",
    "bash scripts/verify_gone.sh": GONE,
    "bash scripts/verify_there.sh": "",
}


@cache
def reported(root: Path, table: str) -> Mapping[str, list[str]]:
    """Write the tree and one contract with every test of a table; return the codes by test."""
    files, tests = (WORKSPACE, RUST) if table == "rust" else (PROJECT, PYTHON)
    quoted = [test.replace("'", "''") for test in tests]
    head = "metadata: {id: C-K, version: 1.0.0, status: ACTIVE, description: d}\nfalsification_tests:\n"
    rows = "".join(
        f"- {{id: F-{at:03}, rule: r, prediction: p, if_fails: x, test: '{test}'}}\n"
        for at, test in enumerate(quoted)
    )
    for name, text in {**files, "contracts/k-v1.yaml": head + rows}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    found: dict[str, list[str]] = {test: [] for test in tests}
    for one in validate((root / "contracts",), cached=False).shown:
        at = int(one.problem.key.partition("[")[2].partition("]")[0])
        found[list(tests)[at]].append(one.problem.code)
    return found


TOX = """\
env_list = ["3.12", "flow"]
[env_run_base]
commands = [["pytest", "checks/test_flow.py", {replace = "posargs", extend = true}]]
[env.gone]
commands = [["pytest", "{tox_root}/checks/test_missing.py"]]
[env.inside]
change_dir = "checks"
commands = [["pytest", "test_flow.py"], ["pytest", "more/test_missing.py"]]
[env.lint]
commands = [["ruff", "check", {replace = "ref", of = ["env", "flow", "deps"]}, "checks/gone.py"]]
"""


@pytest.mark.parametrize("file", ["tox.toml", "pyproject.toml"])
@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("tox -e 3.12", ""),
        ("tox -e flow -- checks/test_missing.py", FILE),
        ("tox -e flow -- -q", ""),
        ("tox -e gone", FILE),
        ("tox -e inside", FILE),
        ("tox -e lint", ""),
        ("tox -e nowhere", GONE),
    ],
)
def test_what_an_environment_of_toml_runs(tmp_path: Path, file: str, test: str, code: str) -> None:
    settings = TOX if file == "tox.toml" else TOX.replace("[env", "[tool.tox.env")
    files = {
        "checks/test_flow.py": "def test_opens():\n    assert 1 + 1 == 2\n",
        "setup.py": "",
        file: settings if file == "tox.toml" else f"[tool.tox]\n{settings}",
        "contracts/k-v1.yaml": (
            "metadata: {id: C-K, version: 1.0.0, status: ACTIVE, description: d}\nfalsification_tests:\n"
            f"- {{id: F-1, rule: r, prediction: p, if_fails: x, test: '{test}'}}\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shown = validate((tmp_path / "contracts",), cached=False).shown
    assert [one.problem.code for one in shown] == ([code] if code else [])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.parametrize("test", RUST)
def test_what_a_command_of_cargo_runs(root: Path, test: str) -> None:
    assert reported(root / "rust", "rust")[test] == ([RUST[test]] if RUST[test] else [])


@pytest.mark.parametrize("test", PYTHON)
def test_what_a_command_of_pytest_or_a_build_tool_runs(root: Path, test: str) -> None:
    assert reported(root / "python", "python")[test] == ([PYTHON[test]] if PYTHON[test] else [])
