"""Our JUnit XML against the one that pytest itself writes for the same tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from apr_falsify.evidence.junit import address, disagreements, junit_xml, read_junit
from apr_falsify.evidence.outcome import Ended, TestRecord

SUITE = """
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2, "<&>"
@pytest.fixture
def broken(): raise ValueError("x")
def test_errors(broken): pass
@pytest.mark.skip(reason="why")
def test_skipped(): pass
@pytest.mark.xfail(strict=True)
def test_xfailed(): assert False
class TestClass:
    class TestInner:
        @pytest.mark.parametrize("x", ["a-b", "a::b", "a[0]", "é"])
        def test_with(self, x): pass
"""
ENDED = {
    "test_passes": Ended.PASSED,
    "test_fails": Ended.FAILED,
    "test_errors": Ended.ERROR,
    "test_skipped": Ended.SKIPPED,
    "test_xfailed": Ended.XFAILED,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[TestRecord]]:
    """What pytest wrote for the suite, and its node ids with how they ended."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tests" / "deep").mkdir(parents=True)
    (folder / "tests" / "deep" / "test_it.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*command, "--junitxml=junit.xml"], cwd=folder, check=False, capture_output=True)
    listed = subprocess.run(
        [*command, "--collect-only"], cwd=folder, check=True, capture_output=True, text=True
    )
    nodes = [line for line in listed.stdout.splitlines() if "::" in line]
    records = [TestRecord(name=one, ended=ENDED.get(one.split("::")[1], Ended.PASSED)) for one in nodes]
    return (folder / "junit.xml").read_bytes(), records


def test_addresses_and_ends_are_those_that_pytest_writes(written: tuple[bytes, list[TestRecord]]) -> None:
    theirs, records = written
    assert len(records) == 9
    ours = junit_xml(records, suite="FALSIFY-TOY-001", created="2026-11-22T12:00:00+00:00")
    assert sorted(read_junit(ours.encode())) == sorted(read_junit(theirs))


def test_pytests_own_file_agrees_with_the_records_and_with_no_others(
    written: tuple[bytes, list[TestRecord]],
) -> None:
    theirs, records = written
    cases = read_junit(theirs)
    assert disagreements(records, cases) == []
    assert disagreements(records[1:], cases) != []
    assert disagreements(records, cases[1:]) != []
    assert disagreements(records, [*cases, cases[0]]) != []
    wrong = [TestRecord(name=records[0].name, ended=Ended.FAILED), *records[1:]]
    assert disagreements(wrong, cases) != []


def test_a_test_that_never_ran_need_not_be_there(written: tuple[bytes, list[TestRecord]]) -> None:
    theirs, records = written
    more = [*records, TestRecord(name="tests/deep/test_it.py::test_x", ended=Ended.DESELECTED)]
    assert disagreements(more, read_junit(theirs)) == []


def test_what_xml_cannot_hold_is_written_in_words() -> None:
    record = TestRecord(name="t.py::f[\\x00\x1b]", ended=Ended.FAILED, reason="\x00 \ud800 <&>\"'")
    data = junit_xml([record], suite="s", created="").encode()
    assert disagreements([record], read_junit(data)) == []
    assert read_junit(data)[0][1] == "f[\\x00#x1B]"


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("t.py::f", ("t", "f")),
        ("a/b/t.py::C::D::f[x/y.py::z]", ("a.b.t.C.D", "f[x/y.py::z]")),
    ],
)
def test_an_address_is_split_as_pytest_splits_it(node: str, expected: tuple[str, str]) -> None:
    assert address(node) == expected
