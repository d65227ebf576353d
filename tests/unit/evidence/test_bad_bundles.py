"""Bundles that are none, or broken on purpose: each defect has a code or a typed error, and no traceback."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.bundle import Draft, read_bundle
from apr_falsify.evidence.files import BUNDLE, CLAIM, JUNIT, MOST_BYTES, STATEMENT, read_contents
from apr_falsify.evidence.verify import Verification, verify
from tests.unit.evidence.bundles import facts_of, measured_draft
from tests.unit.evidence.forging import Files, checked, codes, edited, files_of, forged, resealed, write


@pytest.fixture(scope="module")
def files() -> Files:
    return files_of(Draft(facts=facts_of()))


@pytest.fixture
def bundle(files: Files, tmp_path: Path) -> Path:
    return write(files, tmp_path / "bundle")


def set_(**values: Any) -> Callable[[Any], object]:
    """Return what sets keys of an object; ``__`` separates levels."""

    def change(data: Any) -> None:
        for path, value in values.items():
            *outer, last = path.split("__")
            place = data
            for key in outer:
                place = place[int(key) if key.isdecimal() else key]
            place[last] = value

    return change


FORGED = {
    "newer-version": (BUNDLE, set_(schema="apr-falsify/bundle/v2"), "newer-version"),
    "created-in-the-future": (BUNDLE, set_(created="2999-01-01T00:00:00+00:00"), "created-in-the-future"),
    "no-offset": (BUNDLE, set_(created="2026-11-22T12:00:00"), "bad-bundle"),
    "no-time": (BUNDLE, set_(created="yesterday"), "bad-bundle"),
    "tests-are-no-list": (BUNDLE, set_(tests={}), "bad-bundle"),
    "unknown-result": (BUNDLE, set_(outcome__result="MAYBE"), "bad-bundle"),
    "unknown-role": (BUNDLE, set_(tests__0__role="judge"), "bad-bundle"),
    "no-digest": (BUNDLE, set_(claim_sha256="abc"), "bad-bundle"),
    "functions-are-no-digests": (BUNDLE, set_(bound={"functions": {"f": "1"}, "unbound": {}}), "bad-bundle"),
    "lane-is-a-number": (BUNDLE, set_(lane=1), "bad-bundle"),
    "unknown-predicate": (STATEMENT, set_(predicateType="https://example.com/other/v1"), "bad-statement"),
    "newer-predicate": (
        STATEMENT,
        set_(predicateType="https://in-toto.io/attestation/test-result/v0.2"),
        "bad-statement",
    ),
    "newer-statement": (STATEMENT, set_(_type="https://in-toto.io/Statement/v2"), "bad-statement"),
    "no-subject": (STATEMENT, set_(subject=[]), "bad-statement"),
    "subject-is-no-list": (STATEMENT, set_(subject="bundle.json"), "bad-statement"),
    "no-test": (
        STATEMENT,
        set_(predicate__passedTests=[], predicate__failedTests=[], predicate__warnedTests=[]),
        "bad-statement",
    ),
    "no-predicate": (STATEMENT, set_(predicate=None), "bad-statement"),
    "statement-says-more": (STATEMENT, set_(predicate__result="FAILED"), "statement-not-derived"),
}


@pytest.mark.parametrize(("name", "change", "code"), FORGED.values(), ids=list(FORGED))
def test_a_forged_value_fails_with_its_code(
    files: Files, name: str, change: Callable[[Any], object], code: str
) -> None:
    found = edited(files, name, change)
    if name == BUNDLE:  # the statement names the forged file, so that the value itself is what fails
        old, new = (checked(one).statement_sha256 for one in (files, found))
        assert old == new
        digest = json.loads(files[STATEMENT])
        for one in digest["subject"]:
            if one["name"] == BUNDLE:
                one["digest"]["sha256"] = hashlib.sha256(found[BUNDLE]).hexdigest()
        found = {**found, STATEMENT: json.dumps(digest).encode()}
    assert code in codes(checked(found))


def test_an_outcome_is_told_in_the_words_of_its_tests_and_not_in_its_own(files: Files) -> None:
    found = checked(forged(files, BUNDLE, set_(outcome__reason="100 predictions passed")))
    assert found.holds
    assert "100" not in found.to_json()["outcome"]["reason"]


def test_keys_of_a_later_minor_version_are_passed_over(files: Files) -> None:
    assert checked(forged(files, BUNDLE, set_(novelty=1))).holds


def test_a_clock_that_is_a_little_ahead_is_no_future(files: Files) -> None:
    early = datetime.datetime(2026, 11, 22, 11, 55, tzinfo=datetime.UTC)
    assert checked(files, now=early).holds
    earlier = datetime.datetime(2026, 11, 22, 11, 0, tzinfo=datetime.UTC)
    assert codes(checked(files, now=earlier)) == {"created-in-the-future"}


def test_a_bundle_with_no_test_verifies_nothing(files: Files) -> None:
    empty = {"result": "NOT_RUN", "reason": "no test carries its marker"}
    found = checked(forged(files, BUNDLE, set_(tests=[], outcome=empty)))
    (problem,) = found.problems
    assert problem.code == "bad-statement"
    assert "names no test" in problem.message


CONSISTENT = {
    "outcome": (BUNDLE, set_(outcome__result="FALSIFIED"), "outcome-differs"),
    "failed-test": (BUNDLE, set_(tests__0__ended="failed"), "outcome-differs"),
    "claim": (BUNDLE, set_(claim__prediction="anything"), "claim-differs"),
    "other-falsifier": (BUNDLE, set_(falsifier="FALSIFY-TOY-002"), "claim-differs"),
    "test-renamed": (BUNDLE, set_(tests__0__name="tests/test_toy.py::test_other"), "junit-differs"),
}


@pytest.mark.parametrize(("name", "change", "code"), CONSISTENT.values(), ids=list(CONSISTENT))
def test_a_lie_that_every_digest_agrees_with_still_fails(
    files: Files, name: str, change: Callable[[Any], object], code: str
) -> None:
    assert code in codes(checked(forged(files, name, change)))


JUNITS = {
    "cut off": b"<testsuites><testsuite>",
    "entities without end": b'<!DOCTYPE x [<!ENTITY a "aaaa">]><testsuites>&a;</testsuites>',
    "not UTF-8": b"\xff\xfe<testsuites/>",
    "no tests": b"<testsuites/>",
}


@pytest.mark.parametrize("junit", JUNITS.values(), ids=list(JUNITS))
def test_a_junit_that_is_none_or_disagrees_fails(files: Files, junit: bytes) -> None:
    assert codes(checked(resealed({**files, JUNIT: junit}))) <= {"bad-junit", "junit-differs"}
    assert not checked(resealed({**files, JUNIT: junit})).holds


BAD_JSON = {
    "duplicate keys": b'{"schema": "a", "schema": "b"}',
    "10,000 levels": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "not UTF-8": b'{"a": "\xff"}',
    "cut off": b'{"schema": "apr-fals',
    "a number of 10,000 digits": b"[" + b"9" * 10_000 + b"]",
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=list(BAD_JSON))
@pytest.mark.parametrize("name", [BUNDLE, STATEMENT, CLAIM])
def test_json_that_is_none_fails_and_is_no_exception(files: Files, name: str, data: bytes) -> None:
    found = checked({**files, name: data})
    assert name in {problem.file for problem in found.problems}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=list(BAD_JSON))
@pytest.mark.parametrize("name", ["bisection.json", "oracle/trace.json", "controls/a/bisection.json"])
def test_json_of_a_measurement_that_is_none_fails_though_every_digest_fits(name: str, data: bytes) -> None:
    files = {**files_of(measured_draft(stages=("attn_softmax",))[0]), name: data}
    found = checked(resealed(files))
    assert codes(found) <= {"bad-bisection", "bad-trace", "newer-version"}
    assert not found.holds


def test_a_link_within_a_bundle_is_refused_and_not_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / JUNIT).rename(tmp_path / "elsewhere.xml")
    (bundle / JUNIT).symlink_to(tmp_path / "elsewhere.xml")
    assert ("symlink", JUNIT) in told(verify(bundle))
    with pytest.raises(EvidenceError, match="link"):
        read_bundle(bundle)


def told(found: Verification) -> set[tuple[str, str]]:
    return {(problem.code, problem.file) for problem in found.problems}


def test_a_folder_that_is_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "oracle").symlink_to(tmp_path / "elsewhere")
    assert told(verify(bundle)) == {("symlink", "oracle")}


def test_a_pipe_is_refused_and_not_waited_for(bundle: Path) -> None:
    (bundle / CLAIM).unlink()
    os.mkfifo(bundle / CLAIM)
    assert ("not-a-regular-file", CLAIM) in told(verify(bundle))


def test_a_bundle_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EvidenceError, match="neither a directory nor a file"):
        verify(tmp_path / "pipe")


def test_an_archive_of_another_kind_is_not_called_cut_off(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b no zip")
    with pytest.raises(EvidenceError, match="is neither a directory nor a zip") as caught:
        verify(tmp_path / "b.tar")
    assert "cut off" not in str(caught.value)


def test_of_a_folder_of_bundles_the_bundles_are_offered(bundle: Path) -> None:
    with pytest.raises(EvidenceError, match=r"try: name the bundles in it: .*/\*"):
        verify(bundle.parent)


def test_a_name_that_is_not_utf8_is_refused_and_printable(bundle: Path) -> None:
    (Path(os.fsdecode(os.fsencode(bundle) + b"/\xff.bin"))).write_bytes(b"")
    (code, name), *_ = told(verify(bundle))
    assert code == "name-not-utf8"
    assert name.isprintable()


@pytest.mark.parametrize(
    "name", ["notes.txt", "oracle/deep/er/x.bin", "layer-0/attn_norm.bin", ".hidden", "a\nb"]
)
def test_a_file_that_no_bundle_has_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    assert {code for code, _ in told(verify(bundle))} == {"unexpected-file"}


def test_an_absurdly_large_file_is_refused_unread(bundle: Path) -> None:
    with (bundle / CLAIM).open("wb") as file:
        file.truncate(10**12)
    assert ("too-large", CLAIM) in told(verify(bundle))


def test_more_files_than_any_bundle_has_are_not_all_read(bundle: Path) -> None:
    (bundle / "oracle").mkdir()
    for index in range(5000):
        (bundle / "oracle" / f"{index}").touch()
    assert "too-many-files" in codes(verify(bundle))


def test_an_absurd_size_in_a_stage_header_fails_though_every_digest_fits() -> None:
    files = files_of(measured_draft(stages=("attn_softmax",))[0])
    name = "oracle/layer-0/attn_softmax.bin"
    huge = b"APRT" + struct.pack("<II", 0, 2**32 - 1) + files[name][12:]
    digest = hashlib.sha256(huge).hexdigest()
    trace = edited(files, "oracle/trace.json", set_(stages__0__sha256=digest))
    assert codes(checked(resealed({**trace, name: huge}))) == {"bad-trace"}


def test_an_absurd_geometry_fails_though_every_digest_fits() -> None:
    files = files_of(measured_draft(stages=("attn_softmax",))[0])
    for value in (10**12, -1, 1e12, "many", None):
        found = checked(forged(files, "subject/trace.json", set_(geometry__heads=value)))
        assert codes(found) == {"bad-trace"}, value


def test_nothing_there_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, Path("a\0b")):
        with pytest.raises(EvidenceError):
            verify(path)


def test_a_zip_of_a_bundle_verifies_with_and_without_its_folder(files: Files, tmp_path: Path) -> None:
    for index, top in enumerate(("", "FALSIFY-TOY-001/", "evidence/FALSIFY-TOY-001/")):
        path = tmp_path / f"{index}.zip"
        path.write_bytes(zipped({top + name: data for name, data in files.items()}))
        assert verify(path).holds
        assert read_bundle(path).facts == facts_of()


def zipped(files: Files, change: Callable[[zipfile.ZipInfo], object] = lambda info: None) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            out.writestr(info, data)
    return archive.getvalue()


def test_a_zip_with_its_folders_verifies_and_what_another_system_added_is_named(
    files: Files, tmp_path: Path
) -> None:
    folders = {
        "evidence/": b"",
        "evidence/A/": b"",
        **{f"evidence/A/{name}": data for name, data in files.items()},
    }
    (tmp_path / "a.zip").write_bytes(zipped(folders))
    assert verify(tmp_path / "a.zip").holds
    (tmp_path / "b.zip").write_bytes(zipped({**folders, "__MACOSX/A/._bundle.json": b"x"}))
    assert told(verify(tmp_path / "b.zip")) == {("unexpected-file", "__MACOSX/A/._bundle.json")}


def test_files_that_git_gave_other_line_ends_are_told_from_altered_ones(files: Files) -> None:
    converted = {**files, BUNDLE: files[BUNDLE].replace(b"\n", b"\r\n")}
    assert "core.autocrlf" in checked(converted).problems[0].message
    altered = {**files, BUNDLE: files[BUNDLE].replace(b"SURVIVED", b"FALSIFIED").replace(b"\n", b"\r\n")}
    assert "was changed" in checked(altered).problems[0].message


def test_a_zip_that_is_cut_off_anywhere_is_refused(files: Files, tmp_path: Path) -> None:
    whole = zipped(files)
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with pytest.raises(EvidenceError):
            verify(tmp_path / "cut.zip")


def test_a_zip_bomb_is_refused_unpacked_no_further_than_a_bundle_may_be(files: Files, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
        with out.open("oracle/trace.json", "w", force_zip64=True) as file:
            for _ in range(MOST_BYTES // 2**20 + 2):
                file.write(bytes(2**20))
    (tmp_path / "bomb.zip").write_bytes(bomb.getvalue())
    assert (tmp_path / "bomb.zip").stat().st_size < 2**20
    assert ("too-large", "oracle/trace.json") in told(verify(tmp_path / "bomb.zip"))


def test_a_zip_bomb_that_lies_about_its_size_is_refused(files: Files, tmp_path: Path) -> None:
    data = zipped({**files, "oracle/trace.json": bytes(2**22)})
    (tmp_path / "bomb.zip").write_bytes(data.replace(struct.pack("<I", 2**22), struct.pack("<I", 10)))
    found = verify(tmp_path / "bomb.zip")
    assert "oracle/trace.json" in {problem.file for problem in found.problems}


ZIP_NAMES = {
    "dots": ("../outside.json", "path-leaves-bundle"),
    "dots within": ("oracle/../../outside.json", "path-leaves-bundle"),
    "absolute": ("/etc/passwd", "path-leaves-bundle"),
    "backslashes": ("..\\outside.json", "path-leaves-bundle"),
    "foreign": ("notes.txt", "unexpected-file"),
}


@pytest.mark.parametrize(("name", "code"), ZIP_NAMES.values(), ids=list(ZIP_NAMES))
def test_a_name_that_leaves_a_zip_is_refused(files: Files, tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({**files, name: b"x"}))
    assert code in codes(verify(tmp_path / "x.zip"))


def test_a_name_twice_in_a_zip_is_refused(files: Files, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr(CLAIM, b"{}")
    assert ("duplicate-name", CLAIM) in told(verify(tmp_path / "x.zip"))


def test_a_link_in_a_zip_is_refused(files: Files, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        if info.filename == CLAIM:
            info.external_attr = 0o120777 << 16

    (tmp_path / "x.zip").write_bytes(zipped(files, link))
    assert ("symlink", CLAIM) in told(verify(tmp_path / "x.zip"))


def test_a_file_without_rights_is_told(bundle: Path) -> None:
    if os.getuid() == 0:
        (bundle / CLAIM).unlink()
        (bundle / CLAIM).mkdir()  # root may read everything; a folder is as unreadable
    else:
        (bundle / CLAIM).chmod(0)
    assert CLAIM in {problem.file for problem in verify(bundle).problems}


def test_reading_a_bundle_never_raises_anything_but_a_typed_error(files: Files, tmp_path: Path) -> None:
    for name in files:
        for index, data in enumerate(BAD_JSON.values()):
            folder = write({**files, name: data}, tmp_path / f"{name}-{index}")
            try:
                read_bundle(folder)
            except EvidenceError:
                continue
            assert name in (JUNIT, CLAIM, STATEMENT), name
    assert read_contents(write(files, tmp_path / "whole")).problems == ()
