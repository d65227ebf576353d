"""As people run it in CI: the pre-commit hook, the action's own steps in a shell, without NumPy."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.test_validate_contracts import CONTRACT, project, run
from tests.unit.helpers import run_script

REPOSITORY = Path(__file__).parents[2]
ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text(encoding="utf-8"))
HEAVY = {"numpy", "gguf", "safetensors", "torch", "transformers"}


# The hook


def hook() -> dict[str, Any]:
    (found,) = yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_hook_runs_the_program_on_all_contracts() -> None:
    assert hook()["id"] == hook()["entry"] == "validate-contracts"
    assert hook()["pass_filenames"] is False


def test_the_hook_runs_when_only_sources_changed_or_one_was_deleted() -> None:
    # pre-commit passes a hook over where no staged file matches; a deleted file is never one that matches
    assert hook()["always_run"] is True
    assert not {"files", "types", "types_or", "exclude"} & hook().keys()


def test_a_source_that_changed_alone_is_seen(tmp_path: Path) -> None:
    root = project(tmp_path)
    assert run(root, *shlex.split(hook()["entry"])[1:]).returncode == 0
    (root / "src" / "parser.py").write_text("def read_stage_list(text): ...\n", encoding="utf-8")
    assert run(root).returncode == 1
    (root / "src" / "parser.py").unlink()
    assert run(root).returncode == 1


# The action


def programs(folder: Path) -> Path:
    """Stand-ins for what a runner has on PATH: `python -m pip install FOLDER` puts our program there."""
    folder.mkdir()
    program = f'#!/bin/sh\\nexec {sys.executable} -m apr_falsify.commands.validate_contracts "$@"\\n'
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$1 $2 $3" = "-m pip install" ] || exec {sys.executable} "$@"\n'
        'for last; do :; done\nfolder="${last%%[*}"\n'
        '[ -f "$folder/pyproject.toml" ] || { echo "nothing to install in $folder" >&2; exit 1; }\n'
        f'echo "$last" > {folder}/installed\n'
        f"printf '{program}' > {folder}/validate-contracts\nchmod +x {folder}/validate-contracts\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    return folder


def steps() -> list[dict[str, Any]]:
    """The steps that are commands; the others are actions of GitHub's, which only a runner has."""
    every = ACTION["runs"]["steps"]
    assert [one["uses"] for one in every if "uses" in one] == ["actions/setup-python@v5"]
    return [one for one in every if "run" in one]


def run_action(root: Path, **given: str) -> tuple[int, str, dict[str, str]]:
    """Run the action's commands one after the other, with its inputs as a runner passes them on."""
    inputs = {name: str(one["default"]) for name, one in ACTION["inputs"].items()}
    assert given.keys() <= inputs.keys()
    inputs |= given
    folder = programs(root / "bin")
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "GITHUB_ACTION_PATH": str(REPOSITORY),
        "GITHUB_OUTPUT": str(root / "output"),
    }
    told = ""
    for step in steps():
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # what an input holds must never become part of a command
        own = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)
            for name, value in step.get("env", {}).items()
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=root, env=environment | own, capture_output=True, text=True, check=False
        )
        told += done.stdout + done.stderr
        if done.returncode:
            break
    outputs = (root / "output").read_text(encoding="utf-8") if (root / "output").exists() else ""
    return done.returncode, told, dict(line.split("=", 1) for line in outputs.splitlines())


def test_every_input_of_the_action_is_used() -> None:
    used = set(
        re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", (REPOSITORY / "action.yml").read_text(encoding="utf-8"))
    )
    assert used == ACTION["inputs"].keys()


@pytest.mark.parametrize(("strict", "code"), [("false", 0), ("true", 1)])
def test_the_action_passes_its_inputs_on(tmp_path: Path, strict: str, code: int) -> None:
    contract = tmp_path / "one contract.yaml"
    contract.write_text(
        "metadata: {id: C, version: 1.0.0}\nfalsification_tests:\n- id: F-1\n  rule: r\n  status: PARTIAL\n"
        "  algorithm_evidence: {file_paths: [lib:a.py, far:b.py], function_names: [lib:f]}\n",
        encoding="utf-8",
    )
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("def f(): ...\n", encoding="utf-8")
    ended, told, outputs = run_action(
        tmp_path, paths="one contract.yaml\n", sources="lib=lib\n\n", strict=strict, sarif="report.sarif"
    )
    assert ended == code, told
    assert outputs == {"exit-code": str(code)}
    assert '"version": "2.1.0"' in (tmp_path / "report.sarif").read_text(encoding="utf-8")
    assert "unresolved-name" in told


def test_the_action_with_its_defaults_and_a_baseline(tmp_path: Path) -> None:
    root = project(tmp_path / "good")
    assert run_action(root)[::2] == (0, {"exit-code": "0"})
    assert (root / "bin" / "installed").read_text(encoding="utf-8") == f"{REPOSITORY}\n"
    wrong = project(tmp_path / "wrong", CONTRACT.replace("parse_stage_list", "parse_stages"))
    run(wrong, "--baseline", "known.json", "--write-baseline")
    assert run_action(wrong, baseline="known.json", extras="bisect")[0] == 0
    assert (wrong / "bin" / "installed").read_text(encoding="utf-8") == f"{REPOSITORY}[bisect]\n"


@pytest.mark.parametrize(
    "hostile", ["$(touch owned)", "`touch owned`", "; touch owned", "--help\ntouch owned"]
)
def test_no_input_of_the_action_is_run_as_a_command(tmp_path: Path, hostile: str) -> None:
    root = project(tmp_path)
    run_action(root, **dict.fromkeys(("paths", "sources", "against", "baseline", "extras", "sarif"), hostile))
    assert not (root / "owned").exists()


# Without NumPy


def test_what_is_installed_for_contracts_alone_is_light() -> None:
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {re.split(r"[<>=]", one)[0] for one in table["dependencies"]}
    assert base == {
        "click",
        "jsonschema",
        "packaging",
        "pyyaml",
        "rapidfuzz",
        "rich",
        "tree-sitter",
        "tree-sitter-rust",
    }
    assert {re.split(r"[<>=]", one)[0] for one in table["optional-dependencies"]["bisect"]} == HEAVY - {
        "torch",
        "transformers",
    }
    for extra in ("oracle", "report", "llama-cpp"):
        assert "apr-falsify[bisect]" in table["optional-dependencies"][extra]


BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv[1:] = %r
"""
VALIDATE = BLOCKED + "from apr_falsify.commands.validate_contracts import main\nmain()\n"


def test_contracts_are_validated_without_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    monkeypatch.chdir(root)
    for arguments in (["--strict", "--no-cache"], ["--print-schema"], ["--format", "sarif", "contracts"]):
        done = run_script(VALIDATE % arguments)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_needs_numpy_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)  # it keeps bundles, and to verify one is to compare numbers
    done = run_script(VALIDATE % ["--no-cache", "contracts"])
    assert done.returncode == 2
    assert "numpy is not installed" in done.stderr
    assert "pip install 'apr-falsify[bisect]'" in done.stderr
    done = run_script(BLOCKED % ["bisect"] + "from apr_falsify.commands.main import main\nmain()\n")
    assert (done.returncode, "apr-falsify[bisect]" in done.stderr) == (2, True)


# Rust alone


RUST = """\
metadata: {id: C-RUST, version: 1.0.0}
falsification_tests:
- id: FALSIFY-RUST-001
  rule: r
  test: cargo test -p demo adds
- id: FALSIFY-RUST-002
  rule: r
  test_locations: ['src/lib.rs::adds']
"""


@pytest.mark.parametrize(
    ("more", "code"), [("", 0), ("- id: FALSIFY-PY-001\n  rule: r\n  test: by hand\n", 1)]
)
def test_falsifiers_that_cargo_tests_need_no_pytest_marker(tmp_path: Path, more: str, code: int) -> None:
    root = project(tmp_path, RUST + more)
    (root / "Cargo.toml").write_text('[package]\nname = "demo"\n', encoding="utf-8")
    (root / "src" / "lib.rs").write_text("#[test]\nfn adds() { assert_eq!(1 + 1, 2); }\n", encoding="utf-8")
    text = "[project]\nname = 'p'\n[tool.apr-falsify]\ncontracts = ['contracts']\n"
    (root / "pyproject.toml").write_text(text, encoding="utf-8")
    done = run(root)
    assert done.returncode == code, done.stdout
    assert ("falsifier-without-test" in done.stdout) is bool(code)
    assert "FALSIFY-RUST" not in done.stdout


# What the page says of it


PAGE = (REPOSITORY / "docs" / "validating.md").read_text(encoding="utf-8")


def test_the_page_and_readme_say_how_it_is_used() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for word in ("--source", "--baseline", "--strict", "[tool.apr-falsify.sources]", "ignore", "action.yml"):
        assert word in readme
        assert word in PAGE or word == "action.yml"
    assert "docs/validating.md" in readme
    assert ".pre-commit-hooks.yaml" in readme


def test_what_the_page_gives_the_action_and_the_hook_is_what_they_take() -> None:
    action, configuration = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (step,) = [one for one in yaml.safe_load(action)["steps"] if "apr-falsify" in one["uses"]]
    assert step["with"].keys() <= ACTION["inputs"].keys()
    (used,) = yaml.safe_load(configuration)["repos"][0]["hooks"]
    assert used["id"] == hook()["id"]


def test_the_settings_of_the_page_are_read(tmp_path: Path) -> None:
    root = project(tmp_path)
    tables = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (root / "pyproject.toml").write_text("[project]\nname = 'p'\n" + "\n".join(tables), encoding="utf-8")
    done = run(root)
    assert done.returncode == 1  # its falsifier has no marker, as `contracts` asks for
    assert "falsifier-without-test" in done.stdout
    assert "unused ignore of unknown-block" in done.stdout
