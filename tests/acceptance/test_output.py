"""What is printed: 80 columns without colour in a pipe, one JSON object, and what an exit code means."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from apr_falsify.commands.main import VERBS
from tests.acceptance.programs import APR_TOKENS, BLOCK, PROGRAM, RECORDINGS, TINY, Outcome, program, run

ANSI = "\x1b["
ROOT = Path(__file__).parents[2]
FAULTY = ("--oracle", TINY, "--subject", f"recorded:{RECORDINGS / 'k-bias-zero'}", "--tokens", APR_TOKENS)
GIVEN = ("--weights", TINY, "--tokens", APR_TOKENS)
SAME = ("compare", RECORDINGS / "base", RECORDINGS / "base", *GIVEN)
OTHER = ("compare", RECORDINGS / "base", RECORDINGS / "k-bias-zero", *GIVEN)
"""A right and a wrong run, compared: what is printed is bisect's, and torch is not imported."""


@pytest.mark.parametrize("arguments", [SAME, ("bisect", *FAULTY), ("doctor",)], ids=lambda given: given[0])
def test_piped_text_keeps_to_80_columns_and_has_no_colour(arguments: tuple[object, ...]) -> None:
    wide = {**os.environ, "COLUMNS": "200", "TERM": "xterm-256color"}
    outcome = program(*arguments, env=wide)
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    assert ANSI not in outcome.out + outcome.err


def test_json_is_one_object_and_nothing_else_even_when_libraries_warn() -> None:
    noisy = f"import warnings, sys; warnings.warn('noise'); print('noise', file=sys.stderr)\n{BLOCK}"
    command = [sys.executable, "-W", "always", "-c", noisy, "no_such_module", "bisect", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "noise" in done.stderr
    assert json.loads(done.stdout)["kind"] == "consistent"
    assert ANSI not in done.stdout


def test_a_reader_that_goes_away_changes_no_exit_code() -> None:
    for arguments, code in ((SAME, 0), (OTHER, 1)):
        command = [str(PROGRAM), *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait() == code
            assert process.stderr is not None
            assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("apr-falsify", ("--help",), 0),
        ("apr-falsify", ("bisect", "--help"), 0),
        ("validate-contracts", ("--list-rules",), 0),
        ("validate-contracts", ("tests/corpus/invalid/changelog-version",), 1),
    ],
)
def test_a_reader_of_words_alone_may_go_away_too(name: str, arguments: tuple[str, ...], code: int) -> None:
    command = [str(PROGRAM.with_name(name)), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", code)


@pytest.mark.parametrize(
    "command",
    [f"apr-falsify {shlex.join(map(str, SAME))}", "apr-falsify --help", "validate-contracts --list-rules"],
    ids=("compare", "help", "rules"),
)
def test_a_closed_stdout_is_no_defect(command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{PROGRAM.parent}/{command} >&-"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_knows_ascii_alone_is_no_error(tmp_path: Path) -> None:
    poor = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    tokens = ",".join(map(str, range(60)))  # more than fit in a line: the line is cut with an ellipsis
    assert program("bisect", "--tokens", tokens, env=poor).code == 0
    assert program("bisect", "--oracle", tmp_path / "n\u00f6", env=poor).code == 2


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_imports_none_of_the_heavy_libraries(verb: tuple[str, ...]) -> None:
    script = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'numpy', 'matplotlib', 'rich')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "sys.argv[0] = 'apr-falsify'\n"
        "from apr_falsify.commands.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(('apr-falsify', *verb))}")
    assert done.stderr.strip() == "[]"


def test_every_line_of_help_fits_80_columns() -> None:
    for verb in VERBS:
        assert max(len(line) for line in run(verb, "--help").out.splitlines()) <= 80


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert program("--version").out.strip().endswith(version("apr-falsify"))


def exit_3(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr("apr_falsify.commands.sides.make_plan", broken)
    return run("bisect", *arguments)


def test_a_defect_of_ours_exits_3_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = exit_3(monkeypatch)
    assert (outcome.code, outcome.out) == (3, "")
    assert "internal error: ZeroDivisionError: a defect of ours" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_traceback_comes_with_debug_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("bisect", "--layers", "0..9", "--debug")
    assert refused.code == 2
    assert "Traceback" in refused.err
    assert "Traceback" in exit_3(monkeypatch, "--debug").err


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_full_disk_behind_stdout_is_told_and_no_verdict(output: str) -> None:
    both = (RECORDINGS / "base", RECORDINGS / "base")
    options = ("--weights", TINY, "--tokens", APR_TOKENS, "--format", output)
    command = [str(PROGRAM), "compare", *map(str, (*both, *options))]
    told_of_a_full_disk(command)


def test_contracts_that_cannot_be_told_of_are_no_verdict() -> None:
    told_of_a_full_disk([str(PROGRAM.with_name("validate-contracts")), str(ROOT / "tests" / "corpus")])


def told_of_a_full_disk(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "cannot be printed" in done.stderr) == (2, True)
