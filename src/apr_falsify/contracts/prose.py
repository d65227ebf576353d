"""Names in sentences, labels and inline code: what is certainly a name, and what merely looks like one.

A word of a sentence is held against a contract only where it is surely meant as a name: it stands behind
"the test ...", in back-ticks, or is a near spelling of a name that exists. Everything else is a label.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.resolution import (
    RESOLVED,
    UNCHECKED,
    Resolution,
    ResolutionState,
    did_you_mean,
    missing,
)
from apr_falsify.contracts.resolve import exists_anywhere, nearest_in
from apr_falsify.contracts.roots import SearchScope

NAMED, LABEL, CODE, SKETCH = "named", "label", "code", "sketch"
"""Roles of a loose citation: a name in a sentence, a label, a function of inline code, one nobody claims."""

_TEST_NAME = r"(?:(?:\w+::)*(?:test|tests|falsify|prop|proptest|verify|check|kani)_\w+)"
_NAME = r"(?:\w+::)*\w+_\w+"
_CUE = r"\b(?:tests?|test\s+functions?|fn|functions?|methods?|harness(?:es)?|proofs?)\b"
_QUOTED = rf"`?{_NAME}`?(?:\(\))?"
_CUED = re.compile(rf"{_CUE}[:\s]*\s(?P<names>{_QUOTED}(?:(?:,\s*(?:and\s+)?|\s+and\s+){_QUOTED})*)")
_TICKED = re.compile(rf"`(?P<name>{_NAME})(?:\(\))?`")
_TOKEN = re.compile(rf"(?<![\w/.:`-]){_TEST_NAME}(?![\w/.:-]*/)(?!\.\w)(?!-)")
_LONG = re.compile(r"_.*_")
_ALMOST = 0.88


_OR_ELSE = re.compile(r"\s*\(?\bor\s+(?:an?\s+)?(?:equivalent|similar|comparable)\b[^\n]*", re.IGNORECASE)


def without_alternatives(text: str) -> str:
    """Drop ``or equivalent`` from a command: its words are no names of tests."""
    return _OR_ELSE.sub("", text)


def is_label(name: str) -> bool:
    """Whether a bare name need be no test's: it is no path of modules, and not begun as tests are."""
    return "::" not in name and not re.match(r"(?:test|falsify)_", name)


def label(name: str, text: str, place: Place, absent: bool) -> Citation:
    """Return the citation of a label, which is held against the contract only where it is misspelt."""
    return _loose(name, text, place, LABEL, absent)


def _loose(name: str, text: str, place: Place, role: str, absent: bool) -> Citation:
    return Citation(kind="loose", text=str(text), name=name, place=place, role=role, expected_absent=absent)


def names_in_prose(text: str, place: Place, absent: bool) -> Iterator[Citation]:
    """Names of tests and functions in a sentence."""
    if "_" not in text:
        return
    if "\n" in text.strip() and functions_of(text):
        yield from (_loose(name, name, place, SKETCH, absent) for name in functions_of(text))
        return
    named = {name for match in _CUED.finditer(text) for name in re.findall(_NAME, match["names"])}
    named |= {match["name"] for match in _TICKED.finditer(text) if re.fullmatch(_TEST_NAME, match["name"])}
    found = dict.fromkeys([*sorted(named, key=text.find), *_TOKEN.findall(text)])
    for name in found:
        yield _loose(name, name, place, NAMED if name in named and _LONG.search(name) else LABEL, absent)


_ATTRIBUTED = re.compile(
    r"#\[[^\]]*(?:test|proof|case)[^\]]*\](?:\s*(?:#\[[^\]]*\]|//[^\n]*))*\s*(?:pub(?:\([^)]*\))?\s+)?(?:async\s+)?"
    r"fn\s+(\w+)"
)
_PYTHON_TEST = re.compile(r"^\s*(?:async\s+)?def\s+(test_\w+)\s*\(", re.MULTILINE)
_ANY_FUNCTION = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:async\s+)?fn\s+(\w+)", re.MULTILINE)


def functions_of(code: str) -> list[str]:
    """Return the tests that a piece of Rust or Python defines; of Rust without attributes, its functions."""
    found = [*_ATTRIBUTED.findall(code), *_PYTHON_TEST.findall(code)]
    return list(dict.fromkeys(found or _ANY_FUNCTION.findall(code)))


def inline_code(text: str, place: Place, absent: bool, *, claims: bool) -> Iterator[Citation]:
    """What the text of a test names: its functions, which a status that claims something says exist."""
    functions = functions_of(text)
    if not functions:
        yield from names_in_prose(text, place, absent)
    for name in functions:
        yield _loose(name, name, place, CODE if claims else SKETCH, absent=False)


def resolve_loose(citation: Citation, scope: SearchScope) -> Resolution:
    """Resolve a word that may be a name; only one that is surely meant, or misspelt, can be missing."""
    name, trees = citation.name, list(scope.trees)
    state = exists_anywhere(name, trees, scope)
    if state is not ResolutionState.MISSING or citation.role == SKETCH:
        return RESOLVED if state is ResolutionState.RESOLVED else UNCHECKED
    message = f"the text names {name!r}, which exists nowhere"
    if citation.role == CODE:
        hint = nearest_in(name, [], trees) or "copy it into the tests, or lower the status"
        return missing("test-not-found", f"the code defines {name}, which exists nowhere in the tree", hint)
    if citation.role == NAMED:
        return missing("name-in-prose", message, nearest_in(name, [], trees))
    almost = _almost(name, scope)
    if almost:
        return missing("name-in-prose", message, did_you_mean(almost))
    return UNCHECKED


def _almost(name: str, scope: SearchScope) -> list[str]:
    """Return names that differ from ``name`` in a letter or two."""
    last = name.rpartition("::")[2]
    near = [one for tree in scope.trees for one in tree.nearest(last, tree.vocabulary.defined)[:2]]
    return difflib.get_close_matches(last, near, n=2, cutoff=_ALMOST)
