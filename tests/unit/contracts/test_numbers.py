"""Numbers in contracts that no program should take for a version or a count."""

from __future__ import annotations

import pytest

from apr_falsify.contracts.facts import gather
from apr_falsify.contracts.source import Mapping, parse

LONG = "9" * 5000
CONTRACT = """
metadata:
  id: C-1
  version: {version}
  description: |
    v{version}: all {count} falsifiers hold
version: {version}
total_falsifiers: {count}
equations:
  one:
    formula: x = [a, b, c]
    where: "{count} values, in order"
falsification_tests:
- id: F-1
  rule: it holds
  prediction: {count}-element list [a, b, c]
  test: pytest tests/test_x.py::test_x
  status: BLOCKER_FIXTURE_ABSENT
depends_on:
- other-v1 v{version}
"""


@pytest.mark.parametrize("number", [LONG, "²", "٣", "1e9"], ids=["long", "power", "arabic", "float"])
def test_a_version_and_a_count_that_are_no_plain_numbers_are_read_as_text(number: str) -> None:
    text = CONTRACT.format(version=f"{number}.0.0", count=number)
    facts = gather("contracts/x-v1.yaml", text.encode())
    assert facts.version == f"{number}.0.0"
    assert "count-disagrees" not in {problem.code for problem in facts.problems}


def test_plain_numbers_are_still_counted() -> None:
    facts = gather("contracts/x-v1.yaml", CONTRACT.format(version="1.0.0", count=4).encode())
    assert "count-disagrees" in {problem.code for problem in facts.problems}


PIECES = {"items": "- b\n", "maps": "- {a: b}\n", "lists": "- []\n", "deep": "- - - c\n", "keys": "- ? a\n"}


@pytest.mark.parametrize("piece", PIECES.values(), ids=list(PIECES))
def test_more_values_than_any_contract_has_are_refused_before_they_are_made(piece: str) -> None:
    (problem,) = parse("x.yaml", ("a:\n" + piece * 110_000).encode()).problems
    assert (problem.code, problem.message) == ("file-too-large", "holds more than 100000 values")


def test_two_megabytes_of_prose_are_read() -> None:
    text = "a: |\n" + "  Words, words: a well-known phrase - and so on.\n" * 40_000
    source = parse("x.yaml", text.encode())
    assert not source.problems
    assert isinstance(source.data, Mapping)
