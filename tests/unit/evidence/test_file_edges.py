"""Bounds and odd files of a bundle: how much is read, what a zip may hold, what a fact may be."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence import files as module
from apr_falsify.evidence.bundle import Draft
from apr_falsify.evidence.facts_reader import read_facts, time_of
from apr_falsify.evidence.files import BUNDLE, CLAIM, JUNIT, STATEMENT, read_contents
from tests.unit.evidence.bundles import facts_of
from tests.unit.evidence.forging import Files, files_of, write


@pytest.fixture(scope="module")
def files() -> Files:
    return files_of(Draft(facts=facts_of()))


def zipped(files: Files, path: Path, folder: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return path


def codes(path: Path) -> list[tuple[str, str]]:
    return [(problem.code, problem.file) for problem in read_contents(path).problems]


@pytest.fixture(params=["directory", "zip"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Files], Path]:
    if request.param == "zip":
        return lambda files: zipped(files, tmp_path / "bundle.zip")
    return lambda files: write(files, tmp_path / "bundle")


# --- how much is read ---------------------------------------------------------------


def test_as_many_bytes_are_read_as_a_bundle_may_have(
    files: Files, packed: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = packed(files), sum(map(len, files.values()))
    monkeypatch.setattr(module, "MOST_BYTES", size)
    assert codes(path) == []
    monkeypatch.setattr(module, "MOST_BYTES", size - 1)
    last = sorted(files)[-1] if path.is_dir() else list(files)[-1]
    assert codes(path) == [("too-large", last)]
    assert set(read_contents(path).files) == set(files) - {last}


def test_as_many_files_are_read_as_a_bundle_may_have(
    files: Files, packed: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(files)
    monkeypatch.setattr(module, "MOST_FILES", len(files))
    assert codes(path) == []
    monkeypatch.setattr(module, "MOST_FILES", len(files) - 1)
    found = read_contents(path) if path.is_dir() else None
    if found is not None:
        assert [problem.code for problem in found.problems] == ["too-many-files"]
        assert len(found.files) == len(files) - 1
    else:
        with pytest.raises(EvidenceError, match="no bundle"):  # nothing of it was read
            read_contents(path)


def test_folders_are_counted_too(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write({**files, "oracle/trace.json": b"{}"}, tmp_path / "bundle")
    monkeypatch.setattr(module, "MOST_FILES", len(files) + 2)
    assert codes(path) == []
    monkeypatch.setattr(module, "MOST_FILES", len(files) + 1)
    assert [code for code, _ in codes(path)] == ["too-many-files"]


def test_a_file_that_grows_while_it_is_read_is_not_read_beyond_the_bound(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(files, tmp_path / "bundle")
    seen = os.fstat

    def smaller(descriptor: int) -> Any:
        status = list(seen(descriptor))
        status[stat.ST_SIZE] = 1
        return os.stat_result(status)

    monkeypatch.setattr(module, "MOST_BYTES", 10)
    monkeypatch.setattr(module.os, "fstat", smaller)
    assert {code for code, _ in codes(path)} == {"too-large"}


def test_a_device_that_takes_the_place_of_a_file_meanwhile_is_not_read(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(files, tmp_path / "bundle")
    seen = os.fstat

    def device(descriptor: int) -> Any:
        status = list(seen(descriptor))
        status[stat.ST_MODE] = stat.S_IFCHR | 0o600
        return os.stat_result(status)

    monkeypatch.setattr(module.os, "fstat", device)
    assert set(codes(path)) == {("not-a-regular-file", name) for name in files}


# --- zips ---------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "F-1/", "evidence/F-1/"])
def test_a_zip_holds_a_bundle_with_its_folders_or_without(files: Files, tmp_path: Path, folder: str) -> None:
    found = read_contents(zipped(files, tmp_path / "a.zip", folder))
    assert (found.problems, set(found.files)) == ((), set(files))


def test_a_zip_of_two_bundles_is_none(files: Files, tmp_path: Path) -> None:
    two = {f"{folder}/{name}": data for folder in ("a", "b") for name, data in files.items()}
    with pytest.raises(EvidenceError, match="is no bundle"):
        read_contents(zipped(two, tmp_path / "a.zip"))


def test_a_bundle_within_a_folder_of_a_bundle_is_extra(files: Files, tmp_path: Path) -> None:
    both = {**files, **{f"old/{name}": data for name, data in files.items()}}
    found = read_contents(zipped(both, tmp_path / "a.zip"))
    assert {problem.file for problem in found.problems} == {f"old/{name}" for name in files}
    assert set(found.files) == set(files)


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_file_in_a_zip_is_refused(files: Files, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((mode if name == CLAIM else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)
    assert codes(path) == [("not-a-regular-file", CLAIM)]


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"PK"])
def test_a_zip_that_is_not_whole_is_said_to_be_cut_off(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="is no whole zip") as caught:
        read_contents(path)
    assert "fetch it again" in str(caught.value.remedy)


@pytest.mark.parametrize("content", [b"P", b"", b"\x1f\x8b\x08", b"KP12"])
def test_a_file_of_another_kind_is_said_to_be_no_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="neither a directory nor a zip") as caught:
        read_contents(path)
    assert "unpack" in str(caught.value.remedy)


def test_names_are_shown_without_control_characters_and_cut_at_300(files: Files, tmp_path: Path) -> None:
    path = write(files, tmp_path / "bundle")
    (path / "a\nb\x1b").write_bytes(b"")
    assert codes(path) == [("unexpected-file", "a\\nb\\x1b")]
    found = read_contents(zipped({**files, "x" * 400: b""}, tmp_path / "a.zip"))
    assert [len(problem.file) for problem in found.problems] == [300]


@pytest.mark.parametrize("name", [BUNDLE, STATEMENT])
def test_one_of_its_two_words_makes_a_bundle_even_where_it_cannot_be_read(
    files: Files, tmp_path: Path, name: str
) -> None:
    path = write({JUNIT: b"", name: files[name]}, tmp_path / "bundle")
    assert name in read_contents(path).files
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / name).symlink_to(path / name)
    assert codes(linked) == [("symlink", name)]
    with pytest.raises(EvidenceError, match="is no bundle"):
        read_contents(write({JUNIT: b""}, tmp_path / "none"))


def test_digests_stand_in_the_order_of_names(files: Files, tmp_path: Path) -> None:
    found = read_contents(write(files, tmp_path / "bundle"))
    assert list(found.digests) == sorted(files)


# --- facts --------------------------------------------------------------------------


def facts(change: Callable[[Any], object]) -> Any:
    data = json.loads(json.dumps(facts_of().to_json()))
    change(data)
    return read_facts(data)


SIDE = {"runtime": "apr", "version": "1", "device": "cpu", "dtype": "f32", "model": "m"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("tool"), "it has no 'tool'"),
        (lambda data: data["lane"].update(layers=[0]), "layers has 1 values, not 2"),
        (lambda data: data["lane"].update(layers=[0, 1, 2]), "layers has 3 values, not 2"),
        (lambda data: data["lane"].update(tokens=["1"]), "token"),
        (lambda data: data["lane"].update(tokens=[True]), "token"),
        (lambda data: data["lane"].update(prompt=1), "prompt"),
        (lambda data: data["lane"].update(subject={"version": "1"}), "names no runtime"),
        (lambda data: data["lane"].update(subject={**SIDE, "recorded": "yes"}), "neither true nor false"),
        (lambda data: data["lane"].update(subject={**SIDE, "model_sha256": "AB" * 32}), "not a sha256"),
        (lambda data: data["lane"].update(subject={**SIDE, "binary_sha256": "ab" * 31}), "not a sha256"),
        (lambda data: data.update(claim_sha256="ab" * 33), "not a sha256"),
        (lambda data: data["bound"].update(unbound={"f": 1}), "unbound"),
        (lambda data: data["sources"].update(uncommitted="a"), "uncommitted"),
        (lambda data: data["sources"].update(project=None), "project"),
        (lambda data: data.update(environment={"python": 3}), "environment"),
        (lambda data: data.update(created="2026-11-22"), "offset"),
    ],
)
def test_a_fact_of_another_type_is_refused_by_name(change: Callable[[Any], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        facts(change)


def test_facts_come_back_as_they_were_written() -> None:
    lane = {
        "name": "rtx",
        "prompt": "Hi",
        "tokens": [1, 2],
        "layers": [0, 4],
        "oracle": {**SIDE, "model_sha256": "ab" * 32, "recorded": True},
        "subject": None,
    }
    found = facts(lambda data: data.update(lane=lane, novelty=1))
    assert (found.lane.layers, found.lane.tokens, found.lane.prompt) == ((0, 4), (1, 2), "Hi")
    assert found.lane.oracle.recorded
    assert found.lane.oracle.binary_sha256 is None
    assert found.lane.subject is None
    assert facts(lambda data: None) == facts_of()


def test_what_a_lane_does_not_say_is_empty() -> None:
    found = facts(lambda data: data.update(lane={"name": "rtx"}))
    assert (found.lane.layers, found.lane.tokens, found.lane.prompt, found.lane.oracle) == (
        None,
        (),
        None,
        None,
    )
    assert not facts(lambda data: data["lane"].update(subject={"runtime": "apr"})).lane.subject.recorded


def test_a_time_has_an_offset_from_utc() -> None:
    assert time_of("2026-11-22T12:00:00+02:00").utcoffset() is not None
    with pytest.raises(ValueError, match="offset"):
        time_of("2026-11-22T12:00:00")
