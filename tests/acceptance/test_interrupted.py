"""A capture that is cut short - Ctrl-C, a full disk, a locked folder - leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.acceptance.programs import BLOCK, PROGRAM, TINY, Outcome, assert_refused, listing

pytestmark = pytest.mark.bare

MANY_TOKENS = ",".join(str(number % 512) for number in range(900))
"""Enough of them for a capture to take long enough to be interrupted."""


def interrupted(arguments: Sequence[object], *, when: Callable[[], bool]) -> Outcome:
    """Start the program, send it Ctrl-C as soon as ``when`` holds, and return what it left."""
    command = [str(PROGRAM), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def test_ctrl_c_in_mid_capture_exits_130_and_leaves_nothing(tmp_path: Path) -> None:
    command = ("capture", f"embedded:{TINY}", "--tokens", MANY_TOKENS, "--layers", "0..3")
    outcome = interrupted(
        (*command, "--out", tmp_path / "deep" / "trace"),
        when=lambda: any(tmp_path.glob("deep/.*/layer-0/attn_norm.bin")),
    )
    assert outcome.code == 130, outcome
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert listing(tmp_path) == {}


def test_ctrl_c_while_the_second_side_runs_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = interrupted(
        ("bisect", "--tokens", MANY_TOKENS, "--layers", "0..3", "--out", run),
        when=(run / "oracle").exists,
    )
    assert outcome.code == 130, outcome
    assert listing(tmp_path) == {}


def limited(size: int, *arguments: object, command: tuple[str, ...] = (str(PROGRAM),)) -> Outcome:
    """Run the program where no file can grow beyond ``size`` bytes: what a full disk does to a write."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python would keep what is cut off
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("verb", [("bisect",), ("capture", f"embedded:{TINY}"), ("capture", "oracle", TINY)])
def test_a_disk_that_takes_no_more_is_told_and_nothing_left(tmp_path: Path, verb: tuple[object, ...]) -> None:
    outcome = limited(5000, *verb, "--out", tmp_path / "out")
    assert_refused(outcome, tmp_path / "out", "cannot be written", "free space", "--out")
    assert listing(tmp_path) == {}


WITHOUT_JINJA2 = (sys.executable, "-W", "error", "-c", BLOCK, "jinja2")


@pytest.mark.parametrize(
    ("name", "larger", "command"),
    [("report.html", (), (str(PROGRAM),)), ("bisection.json", ("report.html",), WITHOUT_JINJA2)],
    ids=["report", "bisection"],
)
def test_a_result_that_cannot_be_written_takes_its_traces_with_it(
    tmp_path: Path, embedded_run: Path, name: str, larger: tuple[str, ...], command: tuple[str, ...]
) -> None:
    sizes = {path.name: path.stat().st_size for path in embedded_run.rglob("*") if path.is_file()}
    result = sizes.pop(name)
    others = [size for other, size in sizes.items() if other not in larger]
    assert result > max(others)
    outcome = limited((result + max(others)) // 2, "bisect", "--out", tmp_path / "run", command=command)
    assert_refused(outcome, name, "--out")
    assert listing(tmp_path) == {}


_IN_BOUNDING_SET, _DROP_FROM_BOUNDING_SET = 23, 24
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


def _give_up_rights() -> None:
    """Make the program that is started next heed permissions, even as root.

    Another user would not do: he may not enter the checkout where that lies in a folder of root's alone.
    """
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for right in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            held = libc.prctl(_IN_BOUNDING_SET, right, 0, 0, 0) == 1
            if held and libc.prctl(_DROP_FROM_BOUNDING_SET, right, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


def without_rights(*arguments: object) -> Outcome:
    """Run the program so that it may do what permissions allow its user, and no more."""
    command = [str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_give_up_rights)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    before = listing(tmp_path)
    command = ("capture", f"embedded:{tmp_path / 'model'}", "--tokens", "1,2", "--out", locked / "t")
    assert_refused(without_rights(*command), locked / "t", "Permission denied")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("option", ["--oracle", "--subject"])
def test_a_model_that_may_not_be_looked_into_is_refused(tmp_path: Path, option: str) -> None:
    place = tmp_path / "model"
    shutil.copytree(TINY, place)
    place.chmod(0)
    spec = place if option == "--oracle" else f"embedded:{place}"
    outcome = without_rights("bisect", option, spec, "--tokens", "1,2")
    place.chmod(0o755)
    assert_refused(outcome, place, "Permission denied")
