"""Bundles that would cost more than they are, or that only another writer than ours makes."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.bundle import Draft, read_bundle
from apr_falsify.evidence.files import BUNDLE, MOST_FILES, REPORT, STATEMENT, sha256
from apr_falsify.evidence.junit import read_junit
from apr_falsify.evidence.verify import verify
from tests.fuzz.gauge import held, measured
from tests.unit.evidence.bundles import facts_of
from tests.unit.evidence.forging import Files, checked, codes, files_of


@pytest.fixture(scope="module")
def files() -> Files:
    return files_of(Draft(facts=facts_of()))


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("size", [24 << 20, 60 << 20])
def test_a_small_zip_does_not_fill_the_memory(files: Files, tmp_path: Path, size: int) -> None:
    path = zipped(tmp_path / "bomb.zip", files)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(REPORT, "w") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    found = verify(path)
    assert [(one.code, one.file) for one in found.problems if one.file == REPORT] == [("too-large", REPORT)]
    result = measured(lambda: verify(path), path.stat().st_size, held())
    assert result.defect is None


def test_a_zip_of_what_a_bundle_really_holds_is_read(files: Files, tmp_path: Path) -> None:
    """Reports and statements shrink to a tenth, and a large bundle has some megabytes of them."""
    report = {**files, REPORT: b"<p>the same words again and again</p>\n" * 100_000}
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in report.items():
            archive.writestr(name, data)
    assert len(report[REPORT]) > 100 * path.stat().st_size
    assert codes(verify(path)) == {"extra-file"}  # it is read, and the statement does not name it


def test_a_zip_with_a_directory_of_a_million_files_is_refused_before_it_is_read(
    files: Files, tmp_path: Path
) -> None:
    whole = zipped(tmp_path / "bundle.zip", files).read_bytes()
    at = whole.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", whole, at + 16)[0]
    entry = whole[start : whole.index(b"PK\1\2", start + 4)]
    many = entry * (256 * MOST_FILES // len(entry) + 1)
    end = whole[at : at + 12] + struct.pack("<I", len(many)) + whole[at + 16 :]
    (tmp_path / "many.zip").write_bytes(whole[:start] + many + end)
    with pytest.raises(EvidenceError, match=f"more than {MOST_FILES} files"):
        verify(tmp_path / "many.zip")


def test_a_file_without_a_name_in_a_zip_is_a_problem(files: Files, tmp_path: Path) -> None:
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    path = zipped(tmp_path / "bundle.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(nameless, b"")
    assert codes(verify(path)) == {"unexpected-file"}


JUNITS = {
    "many tags": b"<x>" + b"<testcase/>" * 250_000 + b"</x>",
    "deep tags": b"<x>" + b"<a>" * 150_000 + b"</a>" * 150_000 + b"</x>",
    "many attributes": b"<x " + b"".join(b'a%d="" ' % n for n in range(250_000)) + b"/>",
}


@pytest.mark.parametrize("junit", JUNITS.values(), ids=list(JUNITS))
def test_a_junit_of_more_tags_than_any_run_has_is_refused_before_it_is_parsed(junit: bytes) -> None:
    with pytest.raises(ValueError, match="more than 200000 tags and attributes"):
        read_junit(junit)


def test_a_junit_nested_as_deeply_as_it_may_be_is_read() -> None:
    assert read_junit(b"<x>" + b"<a>" * 90_000 + b"<testcase/>" + b"</a>" * 90_000 + b"</x>") == [
        ("", "", "passed")
    ]


@pytest.mark.parametrize(("name", "key"), [(BUNDLE, "tool"), (STATEMENT, "predicateType")])
def test_half_a_surrogate_pair_is_a_problem_and_not_a_crash(
    files: Files, tmp_path: Path, name: str, key: str
) -> None:
    """JSON can escape what no file can hold: a statement made anew of it could not be written."""
    forged = {**files, name: json.dumps({**json.loads(files[name]), key: "\ud800"}).encode()}
    statement = json.loads(forged[STATEMENT])
    for one in statement["subject"]:
        one["digest"]["sha256"] = sha256(forged[one["name"]])
    forged[STATEMENT] = json.dumps(statement).encode()
    assert codes(checked(forged)) == {"bad-bundle" if name == BUNDLE else "bad-statement"}
    if name == BUNDLE:
        with pytest.raises(EvidenceError, match="surrogates"):
            read_bundle(zipped(tmp_path / "x.zip", forged))
