"""Running the program as a user does: in a process of its own, or in this one where only speed differs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.commands.main import cli, guarded
from tests.support import DATA

PROGRAM = Path(sys.executable).parent / "apr-falsify"
TINY = Path(__file__).parents[2] / "src" / "apr_falsify" / "data" / "tiny-qwen2"
RECORDINGS = DATA / "apr-tiny-qwen2"
APR_TOKENS = "274,272,332,13,20,33"
"""The ids that the real apr printed for its fixed prompt on the tiny checkpoint."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the program left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(*arguments: object) -> Outcome:
    """Run ``apr-falsify`` in this process, through the same guard as the console script."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(cli, [str(argument) for argument in arguments], "apr-falsify")
    return Outcome(code, out.getvalue(), err.getvalue())


def program(*arguments: object, env: Mapping[str, str] | None = None) -> Outcome:
    """Run the installed console script."""
    return _finished([str(PROGRAM), *map(str, arguments)], env)


BLOCK = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: importing it raises ImportError
sys.argv = ["apr-falsify", *sys.argv[2:]]
from apr_falsify.commands.main import main
main()
"""


def program_without(blocked: str, *arguments: object) -> Outcome:
    """Run it in a process in which the modules ``blocked`` (with commas) cannot be imported."""
    return _finished([sys.executable, "-W", "error", "-c", BLOCK, blocked, *map(str, arguments)], None)


def _finished(command: list[str], env: Mapping[str, str] | None) -> Outcome:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)
    return Outcome(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> dict[str, str]:
    """Return every path below ``folder``, hidden ones too, with the digest of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(outcome: Outcome, *said: object) -> None:
    """Check for exit 2, nothing on stdout, and a message for people that says all of ``said``."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    for words in said:
        assert str(words) in outcome.err
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err


def altered_model(folder: Path, change: Callable[[Path], object]) -> Path:
    """Copy the tiny checkpoint to ``folder``/model and let ``change`` break it."""
    model = folder / "model"
    shutil.copytree(TINY, model)
    change(model)
    return model


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file; ``...`` takes a key away."""
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
