"""What belongs to another repository is no error until that is given; a source is found by its own paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome
from tests.acceptance.test_validate_contracts import CONTRACT, project, run

HEAD = "metadata:\n  id: C-HERE\n  version: 1.0.0\n  description: d\n"
ENTRY = "falsification_tests:\n- id: FALSIFY-H-001\n  rule: r\n  algorithm_evidence:\n  - src/here.py\n"
TREE = {
    "here/pyproject.toml": "[project]\nname = 'here'\n",
    "here/src/here.py": "def here(): ...\n",
    "far/Cargo.toml": '[package]\nname = "far-crate"\n',
    "far/src/gguf/mod.rs": "pub fn load() {}\n",
    "far/contracts/far-v1.yaml": "metadata: {id: C-FAR, version: 1.0.0, description: d}\n",
}


def check(root: Path, contract: str, *sources: str) -> ValidationOutcome:
    for name, text in {**TREE, "here/contracts/here-v1.yaml": contract}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    given = tuple(one.format(root) for one in sources)
    return validate((root / "here" / "contracts",), given, cached=False)


def reported(outcome: ValidationOutcome) -> list[tuple[str, str]]:
    return [(one.problem.code, one.problem.hint) for one in outcome.shown]


@pytest.mark.parametrize(
    "path", ["far/src/gguf/mod.rs", "../far/src/gguf/mod.rs", "far/src/gguf/mod.rs::load"]
)
def test_a_file_of_another_repository_is_a_hint_and_no_error(tmp_path: Path, path: str) -> None:
    assert reported(check(tmp_path, f"{HEAD}{ENTRY}  - {path}\n"))[0] == (
        "unresolved-name",
        "--source far=DIR",
    )
    assert reported(check(tmp_path, f"{HEAD}{ENTRY}  - {path}\n", "far={}/far")) == []


@pytest.mark.parametrize(
    "path", ["far-crate/src/gguf/mod.rs", "far_crate/src/gguf/mod.rs", "crates/far/src/gguf/mod.rs"]
)
@pytest.mark.parametrize("name", ["far", "lib"])
def test_a_source_is_found_by_its_crates_path_too(tmp_path: Path, path: str, name: str) -> None:
    assert reported(check(tmp_path, f"{HEAD}{ENTRY}  - {path}\n", f"{name}={{}}/far")) == []
    assert reported(check(tmp_path, f"{HEAD}{ENTRY}  - {name}:{path}\n", f"{name}={{}}/far")) == []


@pytest.mark.parametrize("path", ["far/src/gguf/gone.rs", "../far/src/gguf/gone.rs"])
def test_a_file_that_a_given_source_lacks_is_an_error(tmp_path: Path, path: str) -> None:
    (found,) = reported(check(tmp_path, f"{HEAD}{ENTRY}  - {path}\n", "far={}/far"))
    assert found[0] == "file-not-found"


def test_a_missing_file_of_this_repository_stays_an_error(tmp_path: Path) -> None:
    assert reported(check(tmp_path, f"{HEAD}{ENTRY}  - src/gone.py\n"))[0][0] == "file-not-found"


@pytest.mark.parametrize(
    "sibling",
    [
        "far/contracts/far-v1.yaml",
        "../far/contracts/far-v1.yaml",
        "far:far-v1",
        "far-v1 (paiml/far)",
        "{id: far-v1, repo: paiml/far}",
    ],
)
def test_a_sibling_of_another_repository_is_a_hint_until_it_is_given(tmp_path: Path, sibling: str) -> None:
    value = sibling if sibling[0] == "{" else f"'{sibling}'"
    contract = f"{HEAD}  depends_on: [{value}]\n{ENTRY}"
    (found,) = reported(check(tmp_path, contract))
    assert found == ("unresolved-sibling", "it is of another repository: --source far=DIR")
    assert reported(check(tmp_path, contract, "far={}/far")) == []
    gone = contract.replace("far-v1", "farther-v1")
    assert [code for code, _ in reported(check(tmp_path, gone, "far={}/far"))] == ["sibling-missing"]


def test_what_was_meant_is_never_the_contract_itself(tmp_path: Path) -> None:
    outcome = check(tmp_path, f"{HEAD}  depends_on: [here-v2]\n{ENTRY}  - contracts/here-v2.yaml\n")
    assert [code for code, _ in reported(outcome)] == ["sibling-missing", "file-not-found"]
    assert all("here-v1" not in hint for _, hint in reported(outcome))


def test_contracts_that_name_no_code_are_valid_and_say_so(tmp_path: Path) -> None:
    done = run(
        project(tmp_path, "metadata: {id: C-X, version: 1.0.0}\nfalsification_tests:\n- {id: F-1, rule: r}\n")
    )
    assert done.returncode == 0
    assert "1 contract in 1 file, 1 falsifier\nnames: the contracts name no code" in done.stdout


def test_a_folder_without_any_contract_says_so(tmp_path: Path) -> None:
    done = run(project(tmp_path, "colour: blue\n"))
    assert done.returncode == 4
    assert "nothing conclusive: no contract" in done.stdout


def test_a_baseline_that_covers_everything_exits_0_even_where_nothing_was_resolved(tmp_path: Path) -> None:
    wrong = CONTRACT.replace("parse_stage_list", "parse_stages").replace("src/parser.py", "src/gone.py")
    root = project(tmp_path, wrong.replace("test_two_names", "test_three"))
    assert run(root).returncode == 1
    assert run(root, "--baseline", "known.json", "--write-baseline").returncode == 0
    known = run(root, "--baseline", "known.json")
    assert (known.returncode, "names: 0 of" in known.stdout) == (0, True)
    assert run(root, "--baseline", "known.json", "--strict").returncode == 0
    project(tmp_path)
    fixed = run(root, "--baseline", "known.json")
    assert fixed.returncode == 1
    assert "fixed: contracts/parser-v1.yaml" in fixed.stdout
    assert "remove it from the baseline" in fixed.stdout


def test_notices_are_no_errors_with_strict(tmp_path: Path) -> None:
    root = project(tmp_path, CONTRACT + "blocks_of_ours: {a: 1}\n")
    done = run(root, "--strict", "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["counts"]["notices"] == 1
