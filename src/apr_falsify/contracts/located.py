"""``implementation: path::name``, ``verified_by``, ``test_locations`` and their like, wherever they stand."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from apr_falsify.contracts.citations import (
    READ_IN_GROUPS,
    evidence_block,
    files_in,
    group,
    listed_texts,
    named_tests,
    runs_something,
)
from apr_falsify.contracts.evidence_keys import BLOCK, KEYS, LIVE, LOCATION, PLACE, TEST
from apr_falsify.contracts.model import (
    FALSIFIER_BLOCKS,
    STATUS_KEYS,
    Citation,
    Contract,
    entries,
    place_of,
    text_of,
)
from apr_falsify.contracts.names import parse_path
from apr_falsify.contracts.prose import is_label, label, names_in_prose
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import is_unbuilt, root_of, says_absent

_ALONE = re.compile(r"^`?((?:\w+::)*\w+)(?:\(\))?`?$")
_OF_ANY_TREE = frozenset(
    ("applies_to", "location", "implementation", "implementations", "implemented_by", "implemented_in")
)
"""Keys that often name code of another repository: missing only where the folder they name is here."""
_CONDITIONS = ("falsification_condition", "falsification_conditions")
_NOTHING = re.compile(r"^\W*(?:n/?a|none|null|nil|tbd|tba|todo|pending)\W*$", re.IGNORECASE)
_SOURCES = (".py", ".rs", ".pyi")


def located(contract: Contract) -> Iterator[Citation]:
    """What the contract cites by place, in all of its blocks."""
    absent = is_unbuilt(contract.status)
    yield from _walk(contract.data, "", absent, _labels(contract))
    for key, item in entries(contract.data.get("falsification_conditions"), "falsification_conditions"):
        if isinstance(item, Text) and runs_something(item):
            yield from named_tests(item, place_of(item, key), absent, ())
        elif isinstance(item, Text):
            yield from names_in_prose(item, place_of(item, key), absent)


def _labels(contract: Contract) -> frozenset[str]:
    """Names that the contract gives to things of its own: they are no code."""
    equations = contract.data.get("equations")
    named = list(equations) if isinstance(equations, Mapping) else []
    for block in contract.data.values():
        items = block.values() if isinstance(block, Mapping) else block if isinstance(block, Sequence) else ()
        named += [text_of(item, key) for item in items if isinstance(item, Mapping) for key in ("id", "name")]
    return frozenset(filter(None, named))


def _walk(value: Value, key: str, absent: bool, labels: Collection[str]) -> Iterator[Citation]:
    if isinstance(value, Sequence):
        for at, item in enumerate(value):
            yield from _walk(item, f"{key}[{at}]", absent, labels)
    if not isinstance(value, Mapping):
        return
    own = next((word for name in STATUS_KEYS if root_of(word := text_of(value, name))), "")
    absent = says_absent(own) if own and key else absent
    for name, item in value.items():
        where = f"{key}.{name}" if key else str(name)
        reading = KEYS.get(name)
        if reading in (LOCATION, PLACE):
            yield from _cited(item, where, name, absent, labels)
        elif reading == TEST and isinstance(item, Mapping):
            yield from _under_any_key(item, where, absent)
        elif name in _CONDITIONS and key:
            for place, text in entries(item, where):
                if isinstance(text, Text) and runs_something(text):
                    yield from named_tests(text, place_of(text, place), absent, ())
        elif reading in (BLOCK, LIVE) and key and key.split("[")[0].split(".")[0] not in FALSIFIER_BLOCKS:
            pinned = isinstance(item, Mapping) and "bundle" in item
            yield from () if pinned or absent else evidence_block(item, where, absent, [])
        if isinstance(item, Mapping | Sequence):
            yield from _walk(item, where, absent, labels)


def _under_any_key(mapping: Mapping, key: str, absent: bool) -> Iterator[Citation]:
    """``{unit: a.rs::tests::f, gpu: cargo test g}``: what is a source or a command, whatever its key."""
    for name, value in mapping.items():
        for where, item in entries(value, f"{key}.{name}") if name not in READ_IN_GROUPS else ():
            if not isinstance(item, Text):
                continue
            path = parse_path(item)
            if path and path.path.endswith(_SOURCES):
                yield from files_in(item, place_of(item, where), absent, [])
            elif runs_something(item):
                yield from named_tests(item, place_of(item, where), absent, ())


def _cited(value: Value, key: str, name: str, absent: bool, labels: Collection[str]) -> Iterator[Citation]:
    for where, item in entries(value, key):
        if isinstance(item, Mapping):
            yield from group(item, where, absent, [])
            yield from _under_any_key(item, where, absent)
        if not isinstance(item, Text) or str(item).strip("`") in labels or _NOTHING.match(item):
            continue
        place, path = place_of(item, where), parse_path(item)
        alone = _ALONE.match(item)
        if path and path.path.endswith(_SOURCES):
            yield from files_in(item, place, absent, [], "location" if name in _OF_ANY_TREE else "evidence")
        elif KEYS[name] == PLACE:
            continue
        elif runs_something(item):
            yield from named_tests(item, place, absent, ())
        elif alone and "_" in item and is_label(alone[1]):
            yield label(alone[1], item, place, absent)
        else:
            yield from listed_texts([(where, item)], absent, [])
