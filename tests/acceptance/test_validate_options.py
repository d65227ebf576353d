"""Options, settings, baseline, cache, formats and exit codes of ``validate-contracts``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

from apr_falsify.contracts.rules import RULES
from tests.acceptance.test_validate_contracts import CONTRACT, project, run

DATA = Path(__file__).parent.parent / "data"
WRONG = CONTRACT.replace("parse_stage_list", "parse_stages_list")


def settings(root: Path, text: str) -> None:
    (root / "pyproject.toml").write_text(f"[project]\nname = 'p'\n{text}", encoding="utf-8")


def as_json(root: Path, *arguments: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run(root, "--format", "json", *arguments).stdout)
    return data


def test_no_contract_at_all_fails(tmp_path: Path) -> None:
    (tmp_path / "contracts").mkdir()
    done = run(tmp_path)
    assert done.returncode == 2
    assert "no .yaml or .yml file" in done.stderr


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert run(project(tmp_path), "contrats").returncode == 2


def test_a_folder_whose_name_the_locale_cannot_spell_is_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PYTHONUTF8", "0"), ("LC_ALL", "C"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    done = run(project(tmp_path / "\u00fc"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("source", ["aprender", "=x", "a=", "a=nowhere", "a=pyproject.toml"])
def test_a_source_that_cannot_be_is_wrong_usage(tmp_path: Path, source: str) -> None:
    done = run(project(tmp_path), "--source", source)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_name_of_another_source_is_unresolved_then_strict_then_resolved(tmp_path: Path) -> None:
    root = project(
        tmp_path / "p",
        CONTRACT.replace("- parse", "- parse").replace("[src/parser.py]", "[src/parser.py, lib:far.py]"),
    )
    assert run(root).returncode == 0
    assert "1 unresolved" in run(root).stdout
    assert run(root, "--strict").returncode == 1
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "far.py").write_text("x = 1\n", encoding="utf-8")
    assert run(root, "--strict", "--source", "lib=../lib").returncode == 0
    settings(root, "[tool.apr-falsify.sources]\nlib = '../lib'\n")
    assert run(root, "--strict").returncode == 0


def test_not_one_name_resolved_is_inconclusive(tmp_path: Path) -> None:
    text = CONTRACT.replace("[src/parser.py]", "[lib:parser.py]").replace(
        "pytest tests/test_parser.py::test_two_names", "by hand"
    )
    done = run(project(tmp_path, text))
    assert done.returncode == 4
    assert "nothing conclusive" in done.stdout


def test_a_baseline_counts_what_is_known_fails_on_what_is_new_and_asks_to_strike_off_what_is_mended(
    tmp_path: Path,
) -> None:
    root = project(tmp_path, WRONG)
    assert run(root, "--baseline", "known.json").returncode == 2
    assert run(root, "--baseline", "known.json", "--write-baseline").returncode == 0
    known = run(root, "--baseline", "known.json")
    assert known.returncode == 0
    assert "ignored: 1 x symbol-not-found: baseline" in known.stdout
    (root / "contracts" / "parser-v1.yaml").write_text(
        "\n\n" + WRONG.replace("src/parser", "src/parsers"), encoding="utf-8"
    )
    assert run(root, "--baseline", "known.json").returncode == 1
    (root / "contracts" / "parser-v1.yaml").write_text(CONTRACT, encoding="utf-8")
    mended = run(root, "--baseline", "known.json")
    assert mended.returncode == 1
    assert "remove it from the baseline" in mended.stdout


def test_a_known_problem_stays_known_when_lines_move(tmp_path: Path) -> None:
    root = project(tmp_path, WRONG)
    run(root, "--baseline", "known.json", "--write-baseline")
    (root / "contracts" / "parser-v1.yaml").write_text("# moved\n\n" + WRONG, encoding="utf-8")
    assert run(root, "--baseline", "known.json").returncode == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "other", "problems": []}', '{"schema": 1'])
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    root = project(tmp_path)
    (root / "known.json").write_text(text, encoding="utf-8")
    assert run(root, "--baseline", "known.json").returncode == 2


def test_an_ignore_is_printed_with_its_reason_and_counted(tmp_path: Path) -> None:
    root = project(tmp_path, WRONG)
    settings(root, "[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-found'\nreason = 'renamed next week'\n")
    done = run(root)
    assert done.returncode == 0
    assert "ignored: 1 x symbol-not-found: renamed next week" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-found'\n",
        "[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-fond'\nreason = 'x'\n",
        "[tool.apr-falsify.severities]\nsymbol-not-found = 'fatal'\n",
        "[tool.apr-falsify.severities]\nno-such-code = 'error'\n",
        "[[tool.apr-falsify.ignores]]\ncode = 'yaml-tab'\nreason = 'x'\npaths = 'y'\n",
        "[tool.apr-falsify]\nsorces = {a = 'b'}\n",
        "[tool.apr-falsify\n",
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    root = project(tmp_path)
    settings(root, text)
    done = run(root)
    assert done.returncode == 2
    assert "pyproject.toml" in done.stderr


def test_a_severity_can_be_changed(tmp_path: Path) -> None:
    root = project(tmp_path, WRONG)
    settings(root, "[tool.apr-falsify.severities]\nsymbol-not-found = 'warning'\n")
    assert run(root).returncode == 0
    assert run(root, "--strict").returncode == 1


def test_json_is_one_object_with_denominators(tmp_path: Path) -> None:
    data = as_json(project(tmp_path, WRONG))
    assert data["schema"] == "apr-falsify/validation/v1"
    assert data["exit_code"] == 1
    assert data["counts"]["names"] == {
        "cited": 3,
        "resolved": 2,
        "missing": 1,
        "unresolved": 0,
        "not_checkable": 0,
    }
    (problem,) = data["problems"]
    assert (problem["code"], problem["line"], problem["subject"]) == (
        "symbol-not-found",
        14,
        "parse_stages_list",
    )


def test_sarif_says_what_the_standard_asks_for(tmp_path: Path) -> None:
    root = project(tmp_path, WRONG)
    settings(root, "[[tool.apr-falsify.ignores]]\ncode = 'symbol-not-found'\nreason = 'known'\n")
    log = json.loads(run(root, "--format", "sarif").stdout)
    assert log["version"] == "2.1.0"
    (only,) = log["runs"]
    rules = only["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    (result,) = only["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "symbol-not-found"
    assert result["level"] in ("none", "note", "warning", "error")
    location = result["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "contracts/parser-v1.yaml", "uriBaseId": "%SRCROOT%"}
    assert location["region"] == {"startLine": 14, "startColumn": 22}
    assert result["partialFingerprints"]
    assert result["suppressions"] == [{"kind": "external", "justification": "known"}]


@pytest.mark.parametrize("contract", [CONTRACT, WRONG, "not: [a, contract"], ids=["valid", "wrong", "broken"])
@pytest.mark.parametrize(
    "ignored", ["", "[[tool.apr-falsify.ignores]]\ncode = 'yaml-syntax'\nreason = 'r'\n"]
)
def test_sarif_validates_against_the_published_schema(tmp_path: Path, contract: str, ignored: str) -> None:
    root = project(tmp_path, contract)
    settings(root, ignored)
    schema = json.loads((DATA / "sarif" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
    log = json.loads(run(root, "--format", "sarif").stdout)
    assert [error.message for error in Draft4Validator(schema).iter_errors(log)] == []
    del log["runs"][0]["tool"]
    assert list(Draft4Validator(schema).iter_errors(log))


def test_github_annotations_are_escaped_and_summed_up_beyond_ten(tmp_path: Path) -> None:
    names = ", ".join(f"absent_name_{number}" for number in range(14))
    root = project(tmp_path, CONTRACT.replace('"parse_stage_list (splits at commas)"', names))
    lines = run(root, "--format", "github").stdout.splitlines()
    errors = [line for line in lines if line.startswith("::error ")]
    assert len(errors) == 10
    assert errors[0].startswith(
        "::error file=contracts/parser-v1.yaml,line=14,col=22,title=symbol-not-found::"
    )
    assert errors[-1].endswith("and 5 more: 5 x symbol-not-found")


def test_the_schema_is_published(tmp_path: Path) -> None:
    schema = json.loads(run(tmp_path, "--print-schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_every_code_is_kebab_case_and_listed_with_its_reason(tmp_path: Path) -> None:
    listed = run(tmp_path, "--list-rules").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(RULES)
    assert all(code == code.lower() and "_" not in code and rule.reason for code, rule in RULES.items())


@pytest.mark.parametrize(
    "arguments", [["--against", "no-such-ref"], ["--against", ""], ["--against", "--all"]]
)
def test_an_unknown_git_ref_is_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    root = project(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    assert run(root, *arguments).returncode == 2


def test_against_outside_a_repository_is_wrong_usage(tmp_path: Path) -> None:
    done = run(project(tmp_path), "--against", "HEAD")
    assert done.returncode == 2
    assert "git repository" in done.stderr


def test_neither_torch_nor_numpy_nor_transformers_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from apr_falsify.commands.validate_contracts import validate; "
        "print(int(validate((Path('contracts'),), cached=False).exit_code)); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["0", "[]"]


def test_contract_text_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = CONTRACT.replace(
        "pytest tests/test_parser.py::test_two_names",
        f'"pytest tests/test_parser.py::test_two_names; touch {mark}"',
    )
    root = project(tmp_path / "p", text)
    (root / "src" / "parser.py").write_text(
        f"open({str(mark)!r}, 'w')\n\ndef parse_stage_list(text):\n    return text\n", encoding="utf-8"
    )
    assert run(root).returncode == 0
    assert not mark.exists()


def cached_runs(root: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "apr_falsify.commands.validate_contracts", "--format", "json"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def test_a_cached_answer_changes_with_the_contract_and_with_what_it_names(tmp_path: Path) -> None:
    root, cache = project(tmp_path / "p"), tmp_path / "cache"
    assert cached_runs(root, cache).returncode == 0
    assert len(list(cache.rglob("*.pickle"))) == 1
    assert cached_runs(root, cache).returncode == 0
    source = root / "src" / "parser.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("parse_stage_list", "parse_stages"), encoding="utf-8")
    assert cached_runs(root, cache).returncode == 1
    source.write_text(text, encoding="utf-8")
    assert cached_runs(root, cache).returncode == 0
    source.unlink()
    assert cached_runs(root, cache).returncode == 1
    source.write_text(text, encoding="utf-8")
    (root / "contracts" / "parser-v1.yaml").write_text(WRONG, encoding="utf-8")
    assert cached_runs(root, cache).returncode == 1


@pytest.mark.parametrize("content", [b"", b"garbage", b"cos\nsystem\n(S'touch mark'\ntR."])
def test_a_cache_that_is_none_of_ours_is_no_cache_and_runs_nothing(tmp_path: Path, content: bytes) -> None:
    root, cache = project(tmp_path / "p"), tmp_path / "cache"
    cached_runs(root, cache)
    (path,) = cache.rglob("*.pickle")
    path.write_bytes(content)
    assert cached_runs(root, cache).returncode == 0
    assert not (root / "mark").exists()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert cached_runs(project(tmp_path / "p"), tmp_path / "cache").returncode == 0


def test_many_contracts_on_several_processes_are_reported_as_one_by_one(tmp_path: Path) -> None:
    root = project(tmp_path)
    for number in range(200):
        text = (
            (WRONG if number % 3 else CONTRACT)
            .replace("C-PARSER", f"C-{number}")
            .replace("PARSER-001", f"P-{number}")
        )
        (root / "contracts" / f"many-{number:03}-v1.yaml").write_text(text, encoding="utf-8")
    data = as_json(root, "--no-cache")
    assert data["counts"]["contracts"] == 201
    assert data["counts"]["names"]["missing"] == sum(1 for number in range(200) if number % 3)
    assert [row["path"] for row in data["problems"]] == sorted(row["path"] for row in data["problems"])


def test_a_cached_answer_changes_with_pytests_own_settings(tmp_path: Path) -> None:
    root, cache = project(tmp_path / "p"), tmp_path / "cache"
    assert cached_runs(root, cache).returncode == 0
    settings(root, "[tool.pytest.ini_options]\npython_functions = 'check_*'\n")
    assert cached_runs(root, cache).returncode == 1
