"""A bundle appears under its name whole or not at all, whatever happens to its writer."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from apr_falsify.errors import OutputError
from apr_falsify.evidence.bundle import Draft, read_bundle, write_bundle
from apr_falsify.evidence.verify import verify
from apr_falsify.folders import writer
from tests.sampling import EVERY
from tests.unit.evidence.bundles import facts_of, measured_draft
from tests.unit.helpers import run_script
from tests.unit.traces import everything_under

MOMENTS = 100 if EVERY else 40


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_same_draft_gives_the_same_bytes(tmp_path: Path) -> None:
    draft, _ = measured_draft()
    for name in ("a", "b"):
        write_bundle(draft, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_bundle_is_replaced_by_the_newer_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "evidence" / "FALSIFY-TOY-001"
    write_bundle(measured_draft()[0], place)
    digest = write_bundle(Draft(facts=facts_of()), place, report=False)
    assert everything_under(place) == {"bundle.json", "claim.json", "junit.xml", "statement.json"}
    assert verify(place, pin=digest).state == "verified"
    assert os.listdir(place.parent) == [place.name]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    before = everything_under(tmp_path)
    for name in ("thesis", "file", "link"):
        with pytest.raises(OutputError, match="is there already"):
            write_bundle(Draft(facts=facts_of()), tmp_path / name)
    assert everything_under(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(Draft(facts=facts_of()), tmp_path / "bundle")
    assert verify(tmp_path / "bundle").holds


def test_an_evidence_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in (*tmp_path.parents[:3],):
        if folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = run_script(
        """
from pathlib import Path
from apr_falsify.errors import OutputError
from apr_falsify.evidence.bundle import Draft, write_bundle
import apr_falsify.evidence.sign, apr_falsify.evidence.report, tempfile, zipfile
from tests.sampling import EVERY
from tests.unit.evidence.bundles import facts_of
become_nobody()
try:
    write_bundle(Draft(facts=facts_of()), Path(sys.argv[1]) / "bundle", report=False)
except OutputError as error:
    print(error)
""",
        locked,
    )
    assert "cannot be written: Permission denied" in done.stdout, done
    assert "--evidence-dir" in done.stdout
    assert os.listdir(locked) == []


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle(Draft(facts=facts_of()), tmp_path / "file" / "bundle")


def killed_after(seconds: float, draft: Draft, place: Path) -> None:
    """Write a bundle in a process of its own, and kill that after so long."""
    child = os.fork()
    if child == 0:  # pragma: no cover - it is killed
        try:
            while True:
                write_bundle(draft, place, report=False)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def time_of_a_run(draft: Draft, place: Path) -> float:
    """Return how long a process of its own takes for a bundle: a fork of a large one begins slowly."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:  # pragma: no cover - in another process
        try:
            write_bundle(draft, place, report=False)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return time.monotonic() - start


def test_killed_at_random_moments_it_leaves_the_old_bundle_the_new_one_or_none(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    stages = ("attn_softmax",)
    old, new = (measured_draft(stages=stages, contract_version=one)[0] for one in ("1.0.0", "2.0.0"))
    digests = {write_bundle(one, tmp_path / "other", report=False) for one in (old, new)}
    one_run = max(time_of_a_run(new, tmp_path / "other") for _ in range(3))
    chance = random.Random(11)
    states: list[str] = []
    cut_off = 0
    while len(states) < MOMENTS or cut_off <= MOMENTS / 4:
        assert len(states) < 5 * MOMENTS, "the moments were not in the middle of it"
        if not place.exists():
            write_bundle(old, place, report=False)
        killed_after(chance.random() * 1.5 * one_run, new, place)
        stray = [path for path in tmp_path.iterdir() if path.name.startswith(".bundle")]
        cut_off += bool(stray)
        states.append(state_of(place, digests))
        for path in stray:
            assert is_unfinished(path, digests), path
    assert set(states) <= {"whole", "none"}
    write_bundle(new, place, report=False)
    assert verify(place).holds
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "other"}


def state_of(place: Path, digests: set[str]) -> str:
    if not place.exists():
        return "none"
    found = verify(place)
    return "whole" if found.holds and found.statement_sha256 in digests else f"broken: {found.problems}"


def is_unfinished(path: Path, digests: set[str]) -> bool:
    """Whether nothing under a temporary name passes for a bundle that it is not."""
    if not (path / "statement.json").exists():
        return True
    found = verify(path)
    return not found.holds or found.statement_sha256 in digests


def test_a_writer_that_is_alive_is_not_swept_away(tmp_path: Path) -> None:
    mine = tmp_path / f".bundle.partial-{writer(os.getpid())}x"
    dead = tmp_path / f".bundle.partial-{writer(999999999)}x"
    other = tmp_path / f".bundle-2.partial-{writer(999999999)}x"
    for folder in (mine, dead, other):
        folder.mkdir()
    write_bundle(Draft(facts=facts_of()), tmp_path / "bundle", report=False)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", mine.name, other.name}


def test_several_writers_of_one_bundle_leave_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    children = []
    for index in range(4):
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                for turn in range(5):
                    facts = facts_of(contract_version=f"{index}.{turn}.0")
                    write_bundle(Draft(facts=facts), place, report=False)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert verify(place).holds
    assert read_bundle(place).facts.contract_version.endswith(".4.0")
    assert os.listdir(tmp_path) == ["bundle"]
