"""Rules on claims: whoever says that something is shown names what shows it, and says it once."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.evidence_keys import BLOCK, CODE, EVIDENCE, KEYS, LIVE, TEST, first_of
from apr_falsify.contracts.model import STATUS_KEYS, Contract, Falsifier, entries, place_of, text_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.rules.counts import texts_of
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import PARTIAL, claims_shown, is_unbuilt, rung_of, says_open, word_of

CLAIMING_BLOCKS = ("tasks", "proof_obligations", "kani_harnesses", "lean_theorems", "acceptance_criteria")
"""Blocks beside the falsifiers whose entries may claim a status, each by a word of its own."""
_PROOFS = ("lean", "coq", "kani", "harness", "theorem", "proof", "lean_theorem")
_FILES_AND_NAMES = (
    "file", "files", "file_path", "file_paths", "path", "paths", "source_file", "source_files", "function",
    "functions", "function_name", "function_names", "symbol", "symbols", "commit", "commits", "pr", "prs",
)  # fmt: skip
_NOTHING = re.compile(
    r"^\W*(?:tbd|tba|todo|fixme|none|null|nil|n/?a|pending|unknown|missing|x{3,}|placeholder|not yet|later|"
    r"to be (?:done|determined|decided|written|defined|added))?\W*$",
    re.IGNORECASE,
)
_TO_DO = re.compile(r"^\W*(?:TBD|TODO|FIXME)\b")
_TOLD = ("notes", "note", "status", "verdict", "description", "discharge_status")


def says_nothing(text: str) -> bool:
    """Whether a text is empty or stands for one that is still to be written: ``TBD``, ``...``, ``n/a``."""
    return bool(_NOTHING.match(text) or _TO_DO.match(text))


def is_comment_only(text: str) -> bool:
    """Whether a block of commands or code has no line but comments."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and all(re.match(r"(?:#(?!\[)|//|--\s)", line) for line in lines)


def has_content(value: Value) -> bool:
    """Whether a value names anything at all: notes, placeholders and comments do not."""
    if isinstance(value, Mapping):
        return any(has_content(item) for key, item in value.items() if key not in _TOLD)
    if isinstance(value, Sequence):
        return any(has_content(item) for item in value)
    return value is not None and not says_nothing(value) and not is_comment_only(value)


def names_evidence(data: Mapping, *, more: tuple[str, ...] = ()) -> bool:
    """Whether an entry names any evidence, under whichever key."""
    return any(has_content(data[key]) for key in first_of((*EVIDENCE, *_FILES_AND_NAMES, *more), data))


def claim_without_evidence(contract: Contract) -> Iterator[Problem]:
    """A falsifier, an obligation or a task that is shown names what shows it."""
    for falsifier in contract.falsifiers:
        for place, word in _claims(falsifier.data, falsifier.place.key):
            if claims_shown(word) and not names_evidence(falsifier.data):
                yield _unshown(contract, falsifier.id or falsifier.place.key, place, word)
                break
    for block in CLAIMING_BLOCKS:
        for key, item in items_of(contract.data.get(block), block):
            for place, word in _claims(item, key):
                if claims_shown(word, of_task=block == "tasks") and not names_evidence(item, more=_PROOFS):
                    yield _unshown(contract, text_of(item, "id") or key, place, word)
                    break


def contract_without_evidence(contract: Contract) -> Iterator[Problem]:
    """A contract that is shown, and has no falsifier that says so itself, names somewhere what shows it."""
    if any(one.status for one in contract.falsifiers) or not claims_shown(contract.status):
        return
    keys = {*EVIDENCE, *_FILES_AND_NAMES, *_PROOFS}
    if not any(key in keys and has_content(text) for key, text, _ in texts_of(contract.data)):
        value = contract.metadata.get("status") or contract.data.get("status")
        yield _unshown(contract, "the contract", place_of(value, "metadata.status"), contract.status)


def items_of(value: Value, key: str) -> Iterator[tuple[str, Mapping]]:
    """The entries of a block that is a list, or a mapping by name, with their key paths."""
    if isinstance(value, Mapping):
        pairs: Iterator[tuple[str, Value]] = ((f"{key}.{name}", item) for name, item in value.items())
    else:
        pairs = entries(value, key)
    yield from ((where, item) for where, item in pairs if isinstance(item, Mapping))


def _claims(data: Mapping, key: str) -> Iterator[tuple[Place, str]]:
    """Every status word of an entry, and of its block of evidence."""
    inside = data.get("algorithm_evidence")
    holders = [(data, key), *([(inside, f"{key}.algorithm_evidence")] if isinstance(inside, Mapping) else [])]
    for holder, where in holders:
        for name in STATUS_KEYS:
            value = holder.get(name)
            if isinstance(value, Text) and value.strip():
                yield place_of(value, f"{where}.{name}"), str(value)


def _unshown(contract: Contract, who: str, place: Place, word: str) -> Problem:
    key = place.key.rpartition(".")[2]
    message = f"{who} says {key} {word!r} and names nothing that shows it"
    hint = (
        "name its test, file or function (test, algorithm_evidence, test_locations, ...), or lower the status"
    )
    return problem_at(contract.path, "claim-without-evidence", place, message, subject=who, hint=hint)


def verdict_disagrees(contract: Contract) -> Iterator[Problem]:
    """Status, verdict and discharge status of one falsifier do not contradict each other."""
    for falsifier in contract.falsifiers:
        words = list(_claims(falsifier.data, falsifier.place.key))
        shown = next((one for one in words if claims_shown(one[1])), None)
        opened = next((one for one in words if says_open(one[1])), None)
        if shown is None or opened is None:
            continue
        (place, first), (other, second) = sorted((opened, shown), key=lambda one: one[0].line)
        who = falsifier.id or falsifier.place.key
        message = f"{who} says {_key(place)} {first!r} and {_key(other)} {second!r}"
        hint = "one of them is out of date: say the same in both"
        yield problem_at(contract.path, "verdict-disagrees", place, message, subject=who, hint=hint)


def _key(place: Place) -> str:
    return place.key.rpartition(".")[2]


def test_of_comments_only(contract: Contract) -> Iterator[Problem]:
    """A test that is a block of comments runs nothing."""
    for falsifier in contract.falsifiers:
        for key, text in _test_texts(falsifier) if is_built(contract, falsifier) else ():
            if is_comment_only(text):
                place = place_of(text, key)
                message = f"{falsifier.id or key}: the test is comments only, so that nothing runs"
                hint = "write the command or the name of the test, or leave the key out"
                yield problem_at(
                    contract.path, "test-of-comments-only", place, message, subject=falsifier.id, hint=hint
                )


def is_built(contract: Contract, falsifier: Falsifier) -> bool:
    """Whether a falsifier may be held to its test: one that says it is still to come may hold a plan."""
    status = falsifier.status or contract.status
    return not says_open(status) and not is_unbuilt(status)


def test_or_equivalent(contract: Contract) -> Iterator[Problem]:
    """A test 'or equivalent' is whichever one likes."""
    for falsifier in contract.falsifiers:
        for key, text in _test_texts(falsifier):
            match = re.search(r"\bor\s+(?:an?\s+)?(?:equivalent|similar|comparable)\b", text, re.IGNORECASE)
            if match:
                place = place_of(text, key)
                message = f"{falsifier.id or key}: {match.group()!r} leaves open which test it is"
                hint = "name the one test that decides"
                yield problem_at(
                    contract.path, "test-or-equivalent", place, message, subject=falsifier.id, hint=hint
                )


def _test_texts(falsifier: Falsifier) -> Iterator[tuple[str, Text]]:
    for name, value in falsifier.data.items():
        if KEYS.get(name) in (TEST, CODE, BLOCK, LIVE):
            for key, item in entries(value, f"{falsifier.place.key}.{name}"):
                if isinstance(item, Text):
                    yield key, item


def partial_without_evidence(contract: Contract) -> Iterator[Problem]:
    """PARTIAL says the code exists and is checked: something must say which code, or which test."""
    for falsifier in contract.falsifiers:
        if rung_of(falsifier.status) == PARTIAL and not _names_code(falsifier.data):
            place = falsifier.status_place or falsifier.place
            message = f"{falsifier.id} is {word_of(falsifier.status)} and names no algorithm evidence"
            hint = "name file_paths and function_names under algorithm_evidence, or lower the status"
            yield problem_at(
                contract.path, "partial-without-evidence", place, message, subject=falsifier.id, hint=hint
            )


def _names_code(data: Mapping) -> bool:
    """Whether an entry names code: a command alone says how to check, not what was written."""
    keys = [key for key in EVIDENCE if KEYS[key] not in (TEST, CODE)]
    return any(has_content(data[key]) for key in first_of((*keys, *_FILES_AND_NAMES), data))
