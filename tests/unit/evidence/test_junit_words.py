"""``junit.xml`` and the tests of a bundle: where they disagree, and what XML can hold."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from apr_falsify.evidence.junit import disagreements, junit_xml, read_junit
from apr_falsify.evidence.outcome import Ended, TestRecord

ONE = TestRecord(name="t/test_a.py::TestX::test_one[p]", ended=Ended.PASSED)
TWO = replace(ONE, name="t/test_a.py::test_two", ended=Ended.FAILED, reason="no <way> & more")
CASE_ONE, CASE_TWO = ("t.test_a.TestX", "test_one[p]", "passed"), ("t.test_a", "test_two", "failed")


def told(*cases: tuple[str, str, str], tests: tuple[TestRecord, ...] = (ONE, TWO)) -> list[str]:
    return disagreements(tests, cases)


def test_the_same_tests_in_another_order_agree() -> None:
    assert told(CASE_TWO, CASE_ONE) == []
    assert told(tests=()) == []


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([CASE_ONE], ["has not test_two as failed, bundle.json has"]),
        ([CASE_ONE, CASE_TWO, ("t", "test_x", "passed")], ["has test_x as passed, bundle.json has not"]),
        (
            [CASE_ONE, ("t.test_a", "test_two", "passed")],
            ["has test_two as passed, bundle.json has not", "has not test_two as failed, bundle.json has"],
        ),
        (
            [("t.test_b.TestX", "test_one[p]", "passed"), CASE_TWO],
            [
                "has test_one[p] as passed, bundle.json has not",
                "has not test_one[p] as passed, bundle.json has",
            ],
        ),
        ([CASE_ONE, CASE_TWO, CASE_TWO], ["names a test twice"]),
    ],
)
def test_a_test_that_only_one_of_them_has_is_named(
    cases: list[tuple[str, str, str]], words: list[str]
) -> None:
    assert told(*cases) == words


@pytest.mark.parametrize("how", [Ended.DESELECTED, Ended.UNCOLLECTED, Ended.UNFINISHED])
def test_a_test_that_never_ran_may_be_there_in_any_way_or_not(how: Ended) -> None:
    idle = replace(TWO, ended=how)
    assert told(CASE_ONE, tests=(ONE, idle)) == []
    assert told(CASE_ONE, CASE_TWO, tests=(ONE, idle)) == []
    assert told(CASE_ONE, ("t.test_a", "test_two", "skipped"), tests=(ONE, idle)) == []
    assert told(CASE_ONE, ("t.test_b", "test_two", "failed"), tests=(ONE, idle)) == [
        "has test_two as failed, bundle.json has not"
    ]
    assert told(("t.test_a", "test_one[p]", "passed"), CASE_ONE, tests=(ONE, idle)) != []


ENDS = {
    Ended.PASSED: ("passed", None),
    Ended.FAILED: ("failed", "failure"),
    Ended.ERROR: ("error", "error"),
    Ended.SKIPPED: ("skipped", "skipped"),
    Ended.XFAILED: ("skipped", "skipped"),
    Ended.XPASSED: ("passed", None),
}


@pytest.mark.parametrize("how", ENDS)
def test_each_end_is_written_as_pytest_does_and_read_back(how: Ended) -> None:
    ended, child = ENDS[how]
    record = replace(TWO, ended=how, seconds=1.23456)
    data = junit_xml([record, ONE], suite="F-1", created="2026-11-22").encode()
    assert read_junit(data) == [("t.test_a", "test_two", ended), CASE_ONE]
    assert disagreements([record, ONE], read_junit(data)) == []
    case = ElementTree.fromstring(data).find("testsuite/testcase")
    assert case is not None
    assert (case.get("time"), [one.tag for one in case]) == ("1.235", [child] if child else [])
    if child:
        assert case[0].get("message") == "no <way> & more"
        assert case[0].get("type") == ("pytest.xfail" if how is Ended.XFAILED else None)


def test_a_suite_counts_its_tests_and_leaves_out_what_never_ran() -> None:
    ends = (
        Ended.FAILED,
        Ended.FAILED,
        Ended.ERROR,
        Ended.XFAILED,
        Ended.SKIPPED,
        Ended.SKIPPED,
        Ended.PASSED,
    )
    records = [replace(ONE, name=f"t.py::test_{index}", ended=how) for index, how in enumerate(ends)]
    records += [
        replace(ONE, name=f"t.py::test_{how}", ended=how) for how in (Ended.DESELECTED, Ended.UNFINISHED)
    ]
    suite = ElementTree.fromstring(junit_xml(records, suite="F-1", created="2026-11-22")).find("testsuite")
    assert suite is not None
    assert suite.attrib == {
        "name": "F-1",
        "tests": "7",
        "failures": "2",
        "errors": "1",
        "skipped": "3",
        "timestamp": "2026-11-22",
    }


def test_what_a_test_recorded_is_written_beside_it() -> None:
    recorded = {ONE.name: [("cosine", "0.5"), ("bell", "\a")]}
    text = junit_xml([ONE, TWO], suite="F-1", created="now", properties=recorded)
    first, second = ElementTree.fromstring(text).iter("testcase")
    assert [one.attrib for one in first.iter("property")] == [
        {"name": "cosine", "value": "0.5"},
        {"name": "bell", "value": "#x07"},
    ]
    assert second.find("properties") is None


EDGES = (
    0x8,
    0x9,
    0xA,
    0xB,
    0xC,
    0xD,
    0xE,
    0x1F,
    0x20,
    0xD7FF,
    0xE000,
    0xFFFD,
    0xFFFE,
    0xFFFF,
    0x10000,
    0x10FFFF,
)


@pytest.mark.parametrize("code", EDGES, ids=hex)
def test_a_character_is_written_as_it_is_where_xml_can_hold_it(code: int) -> None:
    """What the parser takes is what XML 1.0 allows: the two must agree at every edge of its ranges."""
    record = replace(TWO, reason=f"a{chr(code)}b")
    case = ElementTree.fromstring(junit_xml([record], suite="s", created="c")).find(
        "testsuite/testcase/failure"
    )
    assert case is not None
    try:
        ElementTree.fromstring(f"<a>{chr(code)}</a>")
        allowed = code not in (0xFFFE, 0xFFFF)  # which expat passes and XML 1.0 does not have
    except ElementTree.ParseError:
        allowed = False
    message = case.get("message")
    assert message == (f"a{chr(code)}b" if allowed else f"a#x{code:02X}b")


@pytest.mark.parametrize("text", ["<!DOCTYPE a><a/>", "<a><![CDATA[<!ENTITY]]></a>", "<a", "", "<a>\x00</a>"])
def test_what_may_hold_entities_or_is_no_xml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"document type|no XML"):
        read_junit(text.encode())
    with pytest.raises(ValueError, match="not UTF-8"):
        read_junit(text.encode() + b"\xff")
