"""Moving one falsifier of a contract by one rung, or renewing the evidence of some, by character span.

1. parse the contract as every reader of this package does, and compose it once more for the places;
2. find the falsifier, and be sure of its place;
3. plan the splices: status, evidence, version, changelog line, metadata.status where the weakest changed;
4. make them, parse the result, and compare: it differs from before in those values, and in nothing else.

What cannot be told for sure is refused, with what to edit by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from apr_falsify.contracts.changelog import ChangelogLine, changelog_splice
from apr_falsify.contracts.claim import Pin, plain
from apr_falsify.contracts.files import MOST_BYTES
from apr_falsify.contracts.model import STATUS_KEYS, Contract, read_contract
from apr_falsify.contracts.pins import pin_changes
from apr_falsify.contracts.source import Mapping, parse
from apr_falsify.contracts.spans import (
    Change,
    Document,
    KeyPath,
    MappingEntry,
    by_hand,
    entry,
    falsifier_node,
    read_document,
    refuse_merged,
    reword,
    spliced,
)
from apr_falsify.contracts.statuses import LADDER, rung_of, weakest
from apr_falsify.errors import ContractError

_BOM = "\ufeff"
_SEMVER = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})")


class Move(StrEnum):
    """What becomes of a falsifier's status; the values are the verbs of the changelog line."""

    PROMOTE = "promote"
    RENEW = "renew"
    DEMOTE = "demote"


STEPS = {Move.PROMOTE: 1, Move.RENEW: 0, Move.DEMOTE: -1}
"""Move -> how many rungs of the ladder it goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionPlan:
    """What is asked for.

    Attributes:
        falsifier: its id.
        move: promote or demote by one rung, or renew the evidence of the rung it stands on.
        rung: the rung it is to stand on then: the next one, the same one, the one below.
        pin: the bundle it then rests on; ``None`` takes the pin away.
        date: of the changelog line, ISO 8601.
        remark: the end of the changelog line's sentence.

    """

    falsifier: str
    move: Move
    rung: str
    pin: Pin | None
    date: str
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A contract's bytes before and after, and what changed: (old, new) of the status and the version."""

    before: bytes
    after: bytes
    status: tuple[str, str]
    version: tuple[str, str]


def plan_edit(path: Path, data: bytes, plan: PromotionPlan, *further: PromotionPlan) -> Edit:
    """Return the edit of a contract's bytes that ``plan`` asks for. Nothing is written.

    Args:
        path: the contract.
        data: its bytes.
        plan: what is asked for; its rung is that of the edit's ``status``.
        further: renewals of other falsifiers beside a renewal: one version and one changelog line for all.

    Raises:
        ContractError: the contract is not valid YAML, has no such falsifier or no such rung, or a place in it
            is not certain; the message says what to edit by hand.

    """
    contract = _read(path, data)
    text = data.decode("utf-8")
    mark = _BOM if text.startswith(_BOM) else ""
    document = read_document(path, text.removeprefix(mark))
    plans = (plan, *further)
    assert not further or all(one.move is Move.RENEW for one in plans)
    found = [_of_falsifier(document, one) for one in plans]
    old_rung, changes = found[0][0], [change for _, some in found for change in some]
    version, version_changes = _version_changes(document, plan)
    line = ChangelogLine(version=version[1], date=plan.date, text=_sentence(plans, old_rung))
    words, change = _changelog_change(document, line)
    changes += [*version_changes, change, *_metadata_status(document, contract, plan)]
    after = (mark + spliced(document.text, [one.splice for one in changes])).encode()
    _refuse_other_changes(path, contract, after, changes, words)
    return Edit(before=data, after=after, status=(old_rung, plan.rung), version=version)


def _read(path: Path, data: bytes) -> Contract:
    if len(data) > MOST_BYTES:
        raise ContractError("is larger than a contract may be", where=path)
    source = parse(path.as_posix(), data)
    problems = [one for one in source.problems if one.code != "byte-order-mark"]
    if problems:
        first = problems[0]
        raise ContractError(
            f"{first.code}: {first.message}", where=f"{path}:{first.line}", expected=first.hint
        )
    if not isinstance(source.data, Mapping):
        raise ContractError("is no contract", where=path, expected="a mapping with falsification_tests")
    return read_contract(path.as_posix(), source.data)


def _of_falsifier(document: Document, plan: PromotionPlan) -> tuple[str, list[Change]]:
    """The rung that a falsifier stands on, and what becomes of its own lines."""
    node, where = falsifier_node(document, plan.falsifier)
    status, status_path = _status(document, node, where)
    old_rung = _refuse_step(document, status, plan)
    return old_rung, [
        *_status_change(document, status, status_path, plan),
        *pin_changes(document, node, status, where, plan.pin),
    ]


def _status(document: Document, node: yaml.MappingNode, where: KeyPath) -> tuple[MappingEntry, KeyPath]:
    """The key that holds a falsifier's status, as the model reads it."""
    for name in STATUS_KEYS:
        found = entry(document, node, name)
        if found and found.scalar.strip():
            return found, (*where, name)
    inside = entry(document, node, "algorithm_evidence")
    held = inside and any(entry(document, inside.value, name) for name in STATUS_KEYS)
    why = "its status stands inside algorithm_evidence, which the claim binds" if held else "it has no status"
    raise by_hand(document, node, why, "write 'status:' beside its id")


def _refuse_step(document: Document, status: MappingEntry, plan: PromotionPlan) -> str:
    """Refuse what is no single rung; return the rung that it stands on."""
    word = status.scalar.strip()
    rung = rung_of(word)
    if rung is None or not re.fullmatch(r"[A-Za-z][\w-]*", word):
        raise by_hand(
            document,
            status.key,
            f"the status {word!r} is no word of the ladder",
            f"one of {', '.join(LADDER)}",
        )
    at, step = LADDER.index(rung), STEPS[plan.move]
    where = f"{document.path}:{status.key.start_mark.line + 1}"
    if not 0 <= at + step < len(LADDER):
        end = "at the top" if step > 0 else "at the bottom"
        raise ContractError(f"{plan.falsifier} is {rung}, which is {end} of the ladder", where=where)
    if plan.rung != LADDER[at + step]:
        raise ContractError(
            f"{plan.falsifier} is {rung}; {plan.rung} is not one rung from there",
            where=where,
            expected=f"{plan.move} leads to {LADDER[at + step]}",
        )
    return rung


def _status_change(
    document: Document, status: MappingEntry, path: KeyPath, plan: PromotionPlan
) -> Iterator[Change]:
    if plan.move is not Move.RENEW:
        splice = reword(document, status, status.scalar.strip(), plan.rung)
        yield Change(splice=splice, path=path, value=status.scalar.replace(status.scalar.strip(), plan.rung))


def _sentence(plans: tuple[PromotionPlan, ...], old_rung: str) -> str:
    plan = plans[0]
    *first, last = [one.falsifier for one in plans]
    names = f"{', '.join(first)} and {last}" if first else last
    said = {
        Move.PROMOTE: f"{plan.falsifier} rises from {old_rung} to {plan.rung}",
        Move.RENEW: f"the evidence of {names} is renewed",
        Move.DEMOTE: f"{plan.falsifier} falls from {old_rung} to {plan.rung}",
    }[plan.move]
    return f"{said}{', ' + plan.remark if plan.remark else ''}."


# metadata


def _places(document: Document, name: str) -> list[tuple[MappingEntry, KeyPath]]:
    """``metadata.name``, and ``name`` at the top, those that are there."""
    metadata = entry(document, document.root, "metadata")
    found = []
    if metadata is not None and isinstance(metadata.value, yaml.MappingNode):
        refuse_merged(document, metadata.value)
        own = entry(document, metadata.value, name)
        found += [(own, ("metadata", name))] if own is not None and own.scalar else []
    top = entry(document, document.root, name)
    return found + ([(top, (name,))] if top is not None and top.scalar else [])


def _version_changes(document: Document, plan: PromotionPlan) -> tuple[tuple[str, str], list[Change]]:
    """MINOR for a rung, PATCH for renewed evidence; where the version stands twice, both."""
    places = _places(document, "version")
    if not places:
        raise by_hand(document, document.root, "the contract has no version", "write metadata.version: 1.0.0")
    old = places[0][0].scalar.strip()
    for found, _ in places:
        if not _SEMVER.fullmatch(found.scalar.strip()) or found.scalar.strip() != old:
            why = f"version {found.scalar!r} is not MAJOR.MINOR.PATCH, or not the contract's only one"
            raise by_hand(document, found.key, why, "raise the version, the status and the changelog")
    major, minor, patch = map(int, _SEMVER.fullmatch(old).groups())  # type: ignore[union-attr]  # matched above
    numbers = f"{major}.{minor}.{patch + 1}" if plan.move is Move.RENEW else f"{major}.{minor + 1}.0"
    new = ("v" if old.startswith("v") else "") + numbers
    changes = [
        Change(splice=reword(document, found, old, new), path=path, value=found.scalar.replace(old, new))
        for found, path in places
    ]
    return (old, new), changes


def _changelog_change(document: Document, line: ChangelogLine) -> tuple[str, Change]:
    places = _places(document, "description")
    if not places:
        todo = f"write a metadata.description with the line 'v{line.version} ({line.date}): {line.text}'"
        raise by_hand(document, document.root, "there is no description to keep a changelog in", todo)
    found, path = places[0]
    bare = ChangelogLine(version=line.version.removeprefix("v"), date=line.date, text=line.text)
    splice, words = changelog_splice(document, found, bare)
    return words, Change(splice=splice, path=path, value=...)


def _metadata_status(document: Document, contract: Contract, plan: PromotionPlan) -> Iterator[Change]:
    """The contract's own status follows its weakest falsifier, where it is a rung itself."""
    rungs = {one.id: rung for one in contract.falsifiers if (rung := rung_of(one.status))}
    before, after = weakest([*rungs.values()]), weakest([*(rungs | {plan.falsifier: plan.rung}).values()])
    places = _places(document, "status")
    if before == after or not places or rung_of(places[0][0].scalar) is None:
        return
    found, path = places[0]
    word = found.scalar.strip()
    if not re.fullmatch(r"[A-Za-z][\w-]*", word):
        raise by_hand(document, found.key, f"metadata.status {word!r} is more than a word", f"write {after}")
    splice = reword(document, found, word, after)
    yield Change(splice=splice, path=path, value=found.scalar.replace(word, after))


# what must hold of the result


def _refuse_other_changes(
    path: Path, contract: Contract, after: bytes, changes: list[Change], words: str
) -> None:
    """Parse the result anew: it differs from before in the changed values, and in nothing else."""
    old = plain(contract.data)
    new = plain(_read(path, after).data)
    for change in changes:
        if change.value is ...:
            told, here = _value_at(old, change.path), _value_at(new, change.path)
            if _has_line_more(str(told), str(here), words):
                _set(old, change.path, here)
        else:
            _set(old, change.path, change.value)
    if old != new:
        raise ContractError(
            "an edit by span would change more than it should",
            where=path,
            remedy="edit it by hand: status, evidence, version, changelog",
        )


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _set(data: Any, path: KeyPath, value: Any) -> None:
    holder = _value_at(data, path[:-1])
    holder[path[-1]] = value


def _has_line_more(old: str, new: str, words: str) -> bool:
    """Whether ``new`` is ``old`` with those words in one place, however its lines are folded."""
    before, after, more = old.split(), new.split(), words.split()
    return len(after) == len(before) + len(more) and any(
        after[:at] == before[:at]
        and after[at : at + len(more)] == more
        and after[at + len(more) :] == before[at:]
        for at in range(len(before) + 1)
    )
