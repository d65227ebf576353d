"""What killed processes left is swept; what a living one writes, and what is kept on purpose, is not."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from apr_falsify.errors import ProcessError
from apr_falsify.folders import partial_prefix, sweep, temporary_folder, write_whole, writer
from apr_falsify.subjects.logs import keeping_log, scratch
from apr_falsify.subjects.process import Program

NOBODY = 999999999
"""No process has this number: it is above the largest that Linux gives."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_folders_and_links_of_ended_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    dead = writer(NOBODY)
    (tmp_path / f"x-{dead}file").touch()
    (tmp_path / f"x-{dead}folder" / "inner").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / f"x-{dead}link").symlink_to("precious")
    kept = {f"x-{writer(os.getpid())}mine", f"x-{writer(1)}of-the-first", f"x-{dead}"[:-1], f"y-{dead}z"}
    kept |= {f"x-{NOBODY}-file", "x-words-here"}
    for name in kept:
        (tmp_path / name).touch()
    sweep(tmp_path, "x-")
    assert names(tmp_path) == kept | {"precious"}


def test_what_another_machine_writes_here_is_left_for_a_day(tmp_path: Path) -> None:
    today, long_ago = (tmp_path / f"x-{NOBODY}-0badcafe-{name}" for name in ("today", "long_ago"))
    for path in (today, long_ago):
        path.touch()
    os.utime(long_ago, (time.time() - 25 * 3600,) * 2)
    sweep(tmp_path, "x-")
    assert names(tmp_path) == {today.name}


def killed_in(temporary: Path) -> None:
    """Let a process be killed while it writes in a scratch folder, a log and a session's folder."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - it is killed
        with keeping_log(None, "apr") as log, scratch("apr") as folder:
            log.path.write_text("said")
            (folder / "written").touch()
            temporary_folder("session")
            os.write(told, b".")
            signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(told)


def test_what_killed_runs_left_in_the_temporary_directory_does_not_pile_up(temporary: Path) -> None:
    for _ in range(3):
        killed_in(temporary)
        assert len(names(temporary)) == 3
    with keeping_log(None, "apr"), scratch("apr"):
        temporary_folder("session").rmdir()
    assert names(temporary) == set()


def test_the_log_of_a_failed_run_is_kept_where_its_error_says_and_never_swept(temporary: Path) -> None:
    program = Program(name="apr", binary=Path("/bin/sh"), seconds=60)
    with pytest.raises(ProcessError) as caught, keeping_log(None, "apr") as log:
        program.run("-c", "echo its last words; exit 7", log=log)
    with keeping_log(None, "apr"), scratch("apr"):
        pass
    (kept,) = temporary.iterdir()
    assert f"its log is {kept} and ends with" in caught.value.remedy
    assert kept.read_text().endswith("its last words\n")


def test_the_log_of_a_good_run_and_of_one_that_was_interrupted_is_removed(temporary: Path) -> None:
    with keeping_log(None, "apr"):
        pass
    with pytest.raises(KeyboardInterrupt), keeping_log(None, "apr"):
        raise KeyboardInterrupt
    assert names(temporary) == set()


def test_a_file_is_written_whole_or_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    ended = tmp_path / f"{partial_prefix(path)}{writer(2**22 + 1)}"
    ended.write_bytes(b"half")  # by a process that there cannot be
    write_whole(path, b"old")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:  # a disk that fills up half way, without rights to mount one
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
