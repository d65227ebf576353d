"""Whatever name of our own contracts is changed by one letter, the validator reports it.

The names are those that the reader says are cited, each at its own place in the text. They are looked up in
this repository, and names of ``aprender:`` in its sources.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_falsify.contracts.facts import gather
from apr_falsify.contracts.marked import Marked, MarkerCitation, marked_problems
from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.roots import Roots, SearchScope
from apr_falsify.contracts.validate import resolve_names
from apr_falsify.symbols.markers import Kept
from tests.sampling import one_in

REPOSITORY = Path(__file__).parents[2]
CONTRACTS = sorted((REPOSITORY / "contracts").glob("*-v1.yaml"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """One name in one contract, by the offset of its text."""

    contract: Path
    start: int
    text: str
    key: str

    @property
    def letters(self) -> list[int]:
        """Positions of its letters; those of a suffix make it no other name but another language."""
        bare = re.sub(r"\.(?:py|rs)\b|^aprender:", lambda match: "." * len(match.group()), self.text)
        return [at for at, char in enumerate(bare) if char in string.ascii_letters]

    def changed(self, at: int, letter: str) -> str:
        """The contract's text with one letter of the name replaced."""
        text = self.contract.read_text(encoding="utf-8")
        return text[: self.start + at] + letter + text[self.start + at + 1 :]


@cache
def names() -> tuple[Name, ...]:
    """Every name that our contracts cite."""
    found = {}
    for contract in CONTRACTS:
        text = contract.read_text(encoding="utf-8")
        starts = [0, *(match.end() for match in re.finditer("\n", text))]
        for one in gather(str(contract), contract.read_bytes()).citations:
            if one.kind == "prose":
                continue
            word = one.name if one.kind == "marker" else one.text.split(" (")[0]
            place = starts[one.place.line - 1] + one.place.column - 1
            start = re.compile(rf"(?<![\w/.:-]){re.escape(word)}(?![\w/])").search(text, place)
            assert start, f"{word} is cited in {contract.name} and not in its text"
            found[contract, start.start()] = Name(
                contract=contract, start=start.start(), text=word, key=one.place.key
            )
    return tuple(found.values())


OURS = tuple(name for name in names() if not name.text.startswith("aprender:"))
THEIRS = tuple(name for name in names() if name.text.startswith("aprender:"))
LOCAL = Roots({})


@cache
def parsed_tests() -> Kept:
    """What was parsed of the test files: they stay as they are whatever a contract says."""
    return {}


def problems(contract: Path, text: str, roots: Roots) -> set[Problem]:
    facts = gather(str(contract), text.encode())
    found, _ = resolve_names(facts, SearchScope(contract, roots))
    cited = tuple(_marker(one) for one in facts.citations if one.kind == "marker")
    marked = Marked(path=contract, shown=str(contract), citations=cited, falsifiers=())
    return {*facts.problems, *found, *marked_problems([marked], roots, parsed_tests())[0]}


def _marker(one: Citation) -> MarkerCitation:
    place = one.place
    return MarkerCitation(
        marker=one.name, line=place.line, column=place.column, key=place.key, expected_absent=False
    )


def new_problems(name: Name, at: int, letter: str, roots: Roots) -> set[Problem]:
    return problems(name.contract, name.changed(at, letter), roots) - unchanged(name.contract, roots)


@cache
def unchanged(contract: Path, roots: Roots) -> set[Problem]:
    return problems(contract, contract.read_text(encoding="utf-8"), roots)


@pytest.fixture(scope="module")
def everywhere(aprender: Path) -> Roots:
    return Roots({"aprender": aprender})


def test_our_contracts_name_more_than_a_hundred_things() -> None:
    assert len(names()) > 100
    assert len(THEIRS) >= 10


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: path.name)
def test_unchanged_they_are_clean(contract: Path, everywhere: Roots) -> None:
    assert not unchanged(contract, everywhere)


@pytest.mark.parametrize(
    "name", one_in(3, OURS), ids=lambda name: f"{name.contract.stem}:{name.key}:{name.text}"
)
def test_every_name_is_reported_when_its_first_or_last_letter_differs(name: Name) -> None:
    for at in (name.letters[0], name.letters[-1]):
        assert new_problems(name, at, "q" if name.text[at] != "q" else "x", LOCAL), at


@pytest.mark.parametrize("name", THEIRS, ids=lambda name: f"{name.contract.stem}:{name.key}:{name.text}")
def test_every_name_of_another_source_is_reported_too(name: Name, everywhere: Roots) -> None:
    for at in (name.letters[0], name.letters[-1]):
        assert new_problems(name, at, "q" if name.text[at] != "q" else "x", everywhere), at


@pytest.mark.falsify_validator_001
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_name_changed_by_one_letter_is_reported(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(OURS))
    at = data.draw(st.sampled_from(name.letters))
    letter = data.draw(st.sampled_from([one for one in string.ascii_letters if one != name.text[at]]))
    assert new_problems(name, at, letter, LOCAL)
