"""What ``validate-contracts`` exits with and says, where folders are bare, and baselines partly apply."""

from __future__ import annotations

import json
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome
from apr_falsify.contracts.output import render
from apr_falsify.contracts.rules import ACROSS_CONTRACTS, OF_HISTORY
from apr_falsify.errors import UsageError
from tests.acceptance.test_validate_contracts import CONTRACT, project

WRONG = CONTRACT.replace("parse_stage_list", "parse_stages_list")
OTHER = WRONG.replace("C-PARSER", "C-OTHER").replace("FALSIFY-PARSER", "FALSIFY-OTHER")
KNOWN = Path("known.json")
FALSIFIER = CONTRACT[CONTRACT.index("- id:") :]
HEAD = CONTRACT.removesuffix(FALSIFIER)
SOURCES = Path(__file__).parents[2] / "src/apr_falsify/contracts"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project(tmp_path / "p"))
    return tmp_path / "p"


def check(*paths: str, **options: Any) -> ValidationOutcome:
    return validate(tuple(Path(path) for path in paths), cached=False, **options)


def said(outcome: ValidationOutcome) -> tuple[int, str]:
    return int(outcome.exit_code), render(outcome, "text")


def note(*paths: str, **options: Any) -> None:
    """Write the baseline."""
    assert check(*paths, baseline=KNOWN, write=True, **options).exit_code == 0


def known(*paths: str, **options: Any) -> tuple[int, str]:
    """Validate with the baseline, and return the exit and the words."""
    return said(check(*paths, baseline=KNOWN, **options))


def two_wrong(root: Path) -> None:
    (root / "contracts/parser-v1.yaml").write_text(WRONG, encoding="utf-8")
    (root / "contracts/other-v1.yaml").write_text(OTHER, encoding="utf-8")


# What is looked at


def test_a_contract_that_is_asked_for_by_two_paths_is_one(root: Path) -> None:
    (root / "contracts/latest.yaml").symlink_to("parser-v1.yaml")
    (root / "linked").symlink_to("contracts")
    outcome = check("contracts", str(root / "contracts"), "linked", "contracts/parser-v1.yaml")
    assert said(outcome)[0] == 0
    assert (outcome.counts.files, outcome.without_contract) == (1, ())


def test_a_contract_that_only_a_link_leads_to_is_read(root: Path) -> None:
    (root / "contracts/parser-v1.yaml").rename(root / "kept.yaml")
    (root / "contracts/parser-v1.yaml").symlink_to("../kept.yaml")
    assert check().counts.contracts == 1


def test_a_path_without_any_contract_is_named_beside_others(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes/list.yaml").write_text("- milk\n", encoding="utf-8")
    code, words = said(check("contracts", "empty", "notes", "notes/list.yaml"))
    assert code == 0
    assert re.findall("no contract in (.*)", words) == ["empty", "notes", "notes/list.yaml"]
    code, words = said(check("notes"))
    assert (code, "nothing conclusive: no contract" in words) == (4, True)


def test_a_path_that_is_not_there_gets_a_near_one(root: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'contracts'"):
        check("contrcts")


# Baselines


def test_what_was_not_asked_for_is_neither_fixed_nor_lost(root: Path) -> None:
    two_wrong(root)
    note()
    code, words = known("contracts/parser-v1.yaml")
    assert (code, "fixed" in words) == (0, False)
    note("contracts/parser-v1.yaml")
    assert known()[0] == 0
    (root / "contracts/other-v1.yaml").unlink()
    code, words = known()
    assert (code, words.count("fixed:")) == (1, 1)
    assert known("contracts/parser-v1.yaml")[0] == 0


def test_ids_that_two_contracts_share_are_not_fixed_where_one_is_asked_for(root: Path) -> None:
    (root / "contracts/copy-v1.yaml").write_text(CONTRACT, encoding="utf-8")
    note()
    for one in ("copy", "parser"):
        assert known(f"contracts/{one}-v1.yaml")[0] == 0
    (root / "contracts/copy-v1.yaml").unlink()
    assert known()[0] == 1


@pytest.mark.parametrize("at", ["src", "contracts", "."])
def test_a_baseline_is_the_same_from_each_folder_of_the_project(
    root: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    two_wrong(root)
    note()
    monkeypatch.chdir(root / at)
    code, words = said(check(str(root / "contracts"), baseline=root / KNOWN))
    assert (code, "fixed" in words) == (0, False)


def test_a_known_problem_stays_known_where_a_falsifier_is_put_before_it(root: Path) -> None:
    first = FALSIFIER.replace("PARSER-001", "PARSER-000")
    two_wrong(root)
    note()
    path = root / "contracts/parser-v1.yaml"
    path.write_text(WRONG.replace("falsification_tests:\n", f"falsification_tests:\n{first}"))
    assert known()[0] == 0
    again = first.replace("parse_stage_list", "parse_stages_list")
    path.write_text(WRONG.replace("falsification_tests:\n", f"falsification_tests:\n{again}"))
    code, words = known()
    assert (code, words.count("error symbol-not-found"), "fixed" in words) == (1, 1, False)


def falsifiers(root: Path, *tests: str) -> None:
    """Write a contract with a falsifier for each test, whose id is of its words."""
    text = HEAD
    for test in tests:
        one = FALSIFIER.replace("PARSER-001", f"{zlib.crc32(test.encode()):010}")
        text += one.replace("tests/test_parser.py::test_two_names", test)
    (root / "contracts/parser-v1.yaml").write_text(text)


def there(root: Path, *names: str) -> None:
    """Let files of one test be there, and no others of these."""
    for name in "abc":
        (root / f"tests/test_{name}.py").unlink(missing_ok=True)
    for name in names:
        (root / f"tests/test_{name}.py").write_text("def test_one():\n    assert 1 + 1 == 2\n")


A, B, C = (f"tests/test_{name}.py::test_one" for name in "abc")


@pytest.mark.parametrize(
    ("before", "now", "present"),
    [
        ((A, B), (A, B), "a"),  # the first is mended, the second breaks
        ((A,), (C,), ""),  # in the same place
        ((A,), (C, A), "a"),  # put before it
        ((f"{A} {B}",), (f"{A} {B}",), "a"),  # of one command
    ],
)
def test_a_problem_of_the_same_name_in_another_file_is_new(
    root: Path, before: tuple[str, ...], now: tuple[str, ...], present: str
) -> None:
    there(root, "b")
    falsifiers(root, *before)
    note()
    assert known()[0] == 0
    there(root, *present)
    falsifiers(root, *now)
    code, words = known()
    assert (code, words.count("error file-not-found"), words.count("fixed:")) == (1, 1, 1)


def test_of_two_names_in_one_command_each_is_known_by_itself(root: Path) -> None:
    falsifiers(root, f"{A} {B}")
    note()
    falsifiers(root, B.replace("_b", "_parser"), f"{A} {B}")
    assert known() == known("contracts")
    assert known()[1].count("ignored: 2 x file-not-found: baseline") == 1
    assert "test-not-found" in known()[1]


def test_a_count_that_grows_with_its_list_is_known(root: Path) -> None:
    path = root / "contracts/parser-v1.yaml"
    total = "summary: {total_falsification_tests: 7}\n"
    path.write_text(CONTRACT + total, encoding="utf-8")
    note()
    assert "count-disagrees" in KNOWN.read_text(encoding="utf-8")
    path.write_text(CONTRACT + FALSIFIER.replace("PARSER-001", "PARSER-002") + total, encoding="utf-8")
    assert known()[0] == 0


def test_a_line_that_moves_in_a_source_makes_nothing_new(root: Path) -> None:
    source = "def test_two_names():\n    assert 1 + 1 == 2\n\n\nclass test_two_names:\n    pass\n"
    (root / "tests/test_parser.py").write_text(source)
    note()
    assert "test-not-collected" in KNOWN.read_text(encoding="utf-8")
    two = "tests/test_parser.py::test_two_names"
    falsifiers(root, two.replace("two_names", "other"), two)
    (root / "tests/test_parser.py").write_text(source[:38].replace("two_names", "other") + "\n" + source)
    assert known()[0] == 0


@pytest.mark.parametrize("is_git", [True, False])
@pytest.mark.parametrize("at", ["known.json", "ci/known.json"])
def test_two_checkouts_in_one_run_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, is_git: bool
) -> None:
    both = [project(tmp_path / name) for name in "ab"]
    for root in both:
        (root / (".git" if is_git else "x")).mkdir()
    (both[0] / "ci").mkdir()
    monkeypatch.chdir(tmp_path)
    (both[0] / "contracts/parser-v1.yaml").write_text(WRONG, encoding="utf-8")
    asked = [f"{name}/contracts" for name in "ab"]
    baseline = both[0] / at
    assert check(*asked, baseline=baseline, write=True).exit_code == 0
    assert json.loads(baseline.read_text(encoding="utf-8"))["paths"] == ["../b/contracts", "contracts"]
    (both[0] / "contracts/parser-v1.yaml").write_text(CONTRACT, encoding="utf-8")
    (both[1] / "contracts/parser-v1.yaml").write_text(WRONG, encoding="utf-8")
    for asked_for, fixed in ((asked, 1), ([str(tmp_path)], 1), (asked[1:], 0)):
        code, words = said(check(*asked_for, baseline=baseline))
        assert (code, words.count("error symbol-not-found"), words.count("fixed:")) == (1, 1, fixed)
    monkeypatch.chdir(both[1])
    code, words = said(check("contracts", baseline=baseline))
    assert (code, words.count("error symbol-not-found")) == (1, 1)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("contracts/parser-v1.yaml", "# nothing\n"),
        ("contracts/parser-v1.yaml", "- a list\n"),
        ("src/parser.py", "x = 1\n" * 1_400_000),
    ],
)
def test_what_a_notice_hides_is_written_again(root: Path, file: str, text: str) -> None:
    two_wrong(root)
    note()
    before = json.loads(KNOWN.read_text(encoding="utf-8"))
    kept = (root / file).read_bytes()
    (root / file).write_text(text, encoding="utf-8")
    assert (known()[0], "fixed" in known()[1]) == (0, False)
    note()
    assert json.loads(KNOWN.read_text(encoding="utf-8")) == before
    (root / file).write_bytes(kept)
    assert known()[0] == 0


def test_an_unresolved_name_hides_only_what_is_about_it(root: Path) -> None:
    far = "lib:tests/test_far.py::test_far"
    falsifiers(root, A, far)
    (root / "lib").mkdir()
    note(sources=("lib=lib",))
    there(root, "a")
    code, words = known()
    assert (code, words.count("fixed:"), "unresolved-name" in words) == (1, 1, True)
    falsifiers(root, B, A, far)
    there(root, "a", "b")
    code, words = known()
    assert (code, words.count("fixed:")) == (1, 1)


def test_a_crate_that_is_not_there_fixes_no_binding(root: Path) -> None:
    for name, text in {
        "lib/Cargo.toml": '[package]\nname = "lib"\nversion = "0.1.0"\nedition = "2021"\n',
        "lib/src/lib.rs": "pub fn one() {}\n",
        "contracts/binding.yaml": "version: 1.0.0\ntarget_crate: lib\nbindings:\n- {contract: parser-v1.yaml,"
        " equation: e, module_path: lib, function: ones, status: implemented}\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "lib").rename(root.parent / "lib")  # beside the project, not in it
    note(sources=("lib=../lib",))
    assert "'ones' exists nowhere" in KNOWN.read_text(encoding="utf-8")
    code, words = known()
    assert (code, "fixed" in words, "unresolved-name" in words) == (0, False, True)


def test_a_source_that_is_not_there_fixes_nothing(root: Path) -> None:
    text = CONTRACT.replace("[src/parser.py]", "[src/parser.py, lib:far.py]")
    (root / "contracts/parser-v1.yaml").write_text(text, encoding="utf-8")
    (root / "lib").mkdir()
    note(sources=("lib=lib",))
    code, words = known()
    assert (code, "fixed" in words, "unresolved-name" in words) == (0, False, True)
    (root / "lib/far.py").write_text("x = 1\n", encoding="utf-8")
    assert known(sources=("lib=lib",))[0] == 1


def test_a_contract_that_cannot_be_read_fixes_nothing(root: Path) -> None:
    two_wrong(root)
    note()
    (root / "contracts/other-v1.yaml").write_text(OTHER + "\n\t- [", encoding="utf-8")
    code, words = known()
    assert (code, "fixed" in words) == (1, False)


def test_what_only_a_commit_shows_is_fixed_only_beside_a_commit(root: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    path = root / "contracts/parser-v1.yaml"
    path.write_text(CONTRACT.replace("two names", "three names"), encoding="utf-8")
    note(against="HEAD")
    assert "version-not-bumped" in KNOWN.read_text(encoding="utf-8")
    assert known()[0] == known(against="HEAD")[0] == 0
    path.write_text(CONTRACT, encoding="utf-8")
    assert known()[0] == 0
    assert known(against="HEAD")[0] == 1


def test_what_is_ignored_is_not_noted(root: Path) -> None:
    two_wrong(root)
    table = "[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-found'\nreason = 'soon'\n"
    (root / "pyproject.toml").write_text(table, encoding="utf-8")
    note()
    assert json.loads(KNOWN.read_text(encoding="utf-8"))["problems"] == []


@pytest.mark.parametrize("path", ["contracts/*.yaml", "contracts/parser-v1.yaml", "parser-*.yaml", "*"])
def test_an_ignore_is_the_same_from_each_folder_of_the_project(
    root: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (root / "contracts/parser-v1.yaml").write_text(WRONG, encoding="utf-8")
    table = f"[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-found'\nreason = 'soon'\npath = '{path}'\n"
    (root / "pyproject.toml").write_text(table, encoding="utf-8")
    for folder, contracts in ((".", "contracts"), ("src", "../contracts"), ("contracts", ".")):
        monkeypatch.chdir(root / folder)
        outcome = check(contracts)
        assert (outcome.exit_code, outcome.unused_ignores) == (0, ())


@pytest.mark.parametrize("name", ["contracts/parser-v1.yaml", "pyproject.toml"])
def test_a_file_that_is_no_baseline_is_not_written_over(root: Path, name: str) -> None:
    before = (root / name).read_bytes()
    with pytest.raises(UsageError, match="is no baseline"):
        check(baseline=Path(name), write=True)
    assert (root / name).read_bytes() == before


def test_an_empty_file_becomes_a_baseline(root: Path) -> None:
    KNOWN.touch()
    note()


def test_a_baseline_of_the_first_release_is_read(root: Path) -> None:
    two_wrong(root)
    note()
    data = json.loads(KNOWN.read_text(encoding="utf-8"))
    del data["paths"]
    data["problems"] = [{key: row[key] for key in ("fingerprint", "shown")} for row in data["problems"]]
    KNOWN.write_text(json.dumps(data), encoding="utf-8")
    assert known()[0] == known("contracts/parser-v1.yaml")[0] == 0
    (root / "contracts/parser-v1.yaml").write_text(CONTRACT, encoding="utf-8")
    code, words = known()
    assert (code, words.count("fixed: contracts/parser-v1.yaml")) == (1, 1)


# Words


def test_annotations_say_why_a_step_fails_that_has_no_problem(root: Path) -> None:
    two_wrong(root)
    note()
    for name in ("parser", "other"):
        (root / f"contracts/{name}-v1.yaml").write_text(
            CONTRACT.replace("PARSER", name.upper()), encoding="utf-8"
        )
    table = "[[tool.apr-falsify.ignores]]\ncode = 'yaml-tab'\nreason = 'old'\n"
    (root / "pyproject.toml").write_text(table, encoding="utf-8")
    outcome = check(baseline=KNOWN)
    words = render(outcome, "github")
    assert outcome.exit_code == 1
    assert re.search("^::error title=baseline::fixed: .*, and 1 more; remove it from", words, re.MULTILINE)
    assert "unused ignore of yaml-tab" in words
    data = json.loads(render(outcome, "json"))
    assert [one["code"] for one in data["unused_ignores"]] == ["yaml-tab"]
    assert (len(data["mended"]), data["inconclusive"]) == (2, None)


@pytest.mark.parametrize(
    ("file", "table"), [("rules/history.py", OF_HISTORY), ("rules/suite.py", ACROSS_CONTRACTS)]
)
def test_the_groups_of_rules_are_those_that_are_reported(file: str, table: dict[str, Any]) -> None:
    reported = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', (SOURCES / file).read_text(encoding="utf-8")))
    assert reported == table.keys()
