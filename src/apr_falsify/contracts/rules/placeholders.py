"""Rules on what is still to be written: an empty falsification, a formula TBD, evidence nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from apr_falsify.contracts.evidence_keys import KEYS, TEST, looks_like_evidence, may_be_evidence
from apr_falsify.contracts.model import FALSIFIER_BLOCKS, Contract, place_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.rules.claims import (
    CLAIMING_BLOCKS,
    has_content,
    is_built,
    is_comment_only,
    items_of,
    says_nothing,
)
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import is_unbuilt

_SAYING = ("rule", "prediction", "condition", "property", "formal", "formula", "statement", "falsification")


def placeholder(contract: Contract) -> Iterator[Problem]:
    """What a contract promises is written out: no empty falsification, no ``formula: TBD``."""
    if is_unbuilt(contract.status):
        return
    for block in FALSIFIER_BLOCKS:
        if block in contract.data and not contract.data[block]:
            yield _unwritten(contract, _key_place(contract.data, block, block), f"{block} is empty", block)
    for falsifier in contract.falsifiers:
        if is_built(contract, falsifier):
            yield from _of_entry(contract, falsifier.data, falsifier.place.key)
    for block in ("equations", "proof_obligations"):
        for key, item in items_of(contract.data.get(block), block):
            yield from _of_entry(contract, item, key)


def _of_entry(contract: Contract, item: Mapping, key: str) -> Iterator[Problem]:
    for name, value in item.items():
        if name not in _SAYING and KEYS.get(name) != TEST:
            continue
        if isinstance(value, Text) and is_comment_only(value):
            continue  # of tests that is told by itself
        if value is None or (isinstance(value, Text) and says_nothing(value)):
            shown = f" ({str(value)!r})" if value else ""
            message = f"{name} is still to be written{shown}"
            yield _unwritten(contract, _key_place(item, name, f"{key}.{name}"), message, key)


def _key_place(holder: Mapping, name: str, key: str) -> Place:
    """Where a value stands; one that is empty has no place, so where its key does."""
    value = holder[name]
    if value is not None:
        return place_of(value, key)
    mark = next(one for one in holder if one == name)
    return place_of(mark if isinstance(mark, Text) else holder, key)


def _unwritten(contract: Contract, place: Place, message: str, subject: str) -> Problem:
    hint = "write it, or say PLANNED"
    return problem_at(contract.path, "placeholder", place, message, subject=subject, hint=hint)


def evidence_not_read(contract: Contract) -> Iterator[Problem]:
    """A key that looks like evidence and is in no table: told once, with how many entries have it."""
    entries = [(one.place.key, one.data) for one in contract.falsifiers]
    entries += [pair for block in CLAIMING_BLOCKS for pair in items_of(contract.data.get(block), block)]
    found: Counter[str] = Counter()
    first: dict[str, Place] = {}
    for key, item in entries:
        for where, name, value in _unread(item, key):
            found[name] += 1
            first.setdefault(name, place_of(value, where))
    for name, count in found.items():
        entries_word = "entry" if count == 1 else "entries"
        message = f"{name!r} looks like evidence and is not read ({count} {entries_word})"
        hint = "what it names is not checked; put it under algorithm_evidence, test_locations or test"
        yield problem_at(contract.path, "evidence-not-read", first[name], message, subject=name, hint=hint)


def _unread(value: Value, key: str) -> Iterator[tuple[str, str, Value]]:
    if isinstance(value, Sequence):
        for at, item in enumerate(value):
            yield from _unread(item, f"{key}[{at}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if (looks_like_evidence(name) and has_content(item)) or may_be_evidence(name, item):
                yield f"{key}.{name}", str(name), item
            else:
                yield from _unread(item, f"{key}.{name}")
