"""Rules on summaries: what a contract sums up agrees with what its falsifiers and obligations say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.model import FALSIFIER_BLOCKS, Contract, place_of, text_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.rules.counts import texts_of
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import (
    BLOCKER,
    FUNCTIONAL,
    PARTIAL,
    claims_shown,
    is_unbuilt,
    root_of,
    rung_of,
)

_BLOCKS = (
    "verification_summary",
    "summary",
    "status_summary",
    "discharge_summary",
    "coverage_summary",
    "tally",
)
_SHOWN = (
    "tested",
    "functional",
    "discharged",
    "passed",
    "passing",
    "verified",
    "implemented",
    "bound",
    "survived",
)
_PROVED = ("proven", "proved")
_RUNGS = {"functional": FUNCTIONAL, "partial": PARTIAL, "blocked": BLOCKER, "blocker": BLOCKER}
"""Figure of a summary -> the rung that it counts, exactly."""
_PARTS = (
    "tested",
    "proven",
    "proved",
    "l2_property_tested",
    "l3_kani_proved",
    "l4_lean_proved",
    "l4_sorry_count",
)
"""Figures that count some of the obligations."""
_SHARE = re.compile(
    r"\b(?P<part>\d{1,4})\s*(?:/|of|out of)\s*(?P<whole>\d{1,4})\s+(?:[\w-]+\s+){0,2}?"
    r"(?:bound|tested|proven|proved|discharged|verified|covered|implemented|functional|passed|passing)\b"
    r"(?:[^:(\[\n]{0,40}[:(\[]\s*(?P<list>[^\n)\]]+))?",
    re.IGNORECASE,
)
_ID = re.compile(r"\b[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*-\d+[a-z]?\b")


def summary_disagrees(contract: Contract) -> Iterator[Problem]:
    """Each figure of a summary is what the contract's own entries give."""
    for name in _BLOCKS:
        block = contract.data.get(name)
        if isinstance(block, Mapping):
            yield from _figures(contract, block, name)
    yield from _shares(contract)


def _figures(contract: Contract, block: Mapping, name: str) -> Iterator[Problem]:
    shown = [one.id for one in contract.falsifiers if claims_shown(one.status)]
    proved = _proved(contract)
    for key, value in block.items():
        if not isinstance(value, Text) or not re.fullmatch(r"[0-9]{1,6}", value):
            continue
        place, said = place_of(value, f"{name}.{key}"), int(value)
        rungs = [rung for one in contract.falsifiers if (rung := rung_of(one.status))]
        if key in _SHOWN and said == 0 and shown:
            yield _disagreement(contract, place, f"{key} is 0, and {_who(shown)}", str(len(shown)))
        elif key in _PROVED and said == 0 and proved:
            yield _disagreement(contract, place, f"{key} is 0, and {_who(proved)}", str(len(proved)))
        elif key in _RUNGS and rungs and said != rungs.count(_RUNGS[key]):
            count = rungs.count(_RUNGS[key])
            yield _disagreement(contract, place, f"{key} is {said}, {count} falsifiers are", str(count))
        elif (most := _most(contract, block, key)) is not None and said > most[0]:
            yield _disagreement(contract, place, f"{key} is {said}, and there are {most[0]} {most[1]}", "")


def _who(ids: list[str]) -> str:
    return f"{len(ids)} claim otherwise: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"


def _disagreement(contract: Contract, place: Place, message: str, right: str) -> Problem:
    hint = f"write {right}, or correct the entries" if right else "correct the figure, or add what it counts"
    return problem_at(contract.path, "summary-disagrees", place, message, subject=place.key, hint=hint)


def _proved(contract: Contract) -> list[str]:
    """Entries that say to be proved, by their id or what they say."""
    items = [*_entries(contract.data.get("proof_obligations")), *(one.data for one in contract.falsifiers)]
    words = ("PROVED", "PROVEN")
    return [text_of(one, "id") or text_of(one, "property") for one in items if root_of(_word(one)) in words]


def _word(item: Mapping) -> str:
    lean = item.get("lean")
    inner = text_of(lean, "status") if isinstance(lean, Mapping) else ""
    return text_of(item, "status") or text_of(item, "verdict") or inner


def _entries(value: Value) -> list[Mapping]:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return [item for item in items if isinstance(item, Mapping)]


def _most(contract: Contract, block: Mapping, key: str) -> tuple[int, str] | None:
    """How many there can be of what a figure counts: no more than it is a part of."""
    if key == "l3_kani_proved" and "kani_harnesses" in contract.data:
        return len(_entries(contract.data.get("kani_harnesses"))), "Kani harnesses"
    if key not in _PARTS:
        return None
    total = text_of(block, "total_obligations")
    listed = len(_entries(contract.data.get("proof_obligations")))
    obligations = int(total) if total.isdigit() and total.isascii() and len(total) < 7 else listed
    most = max(obligations, len(contract.falsifiers) if key == "tested" else 0)
    return (most, "obligations") if most else None


def _shares(contract: Contract) -> Iterator[Problem]:
    """``4/10 bound: A-001, A-002, ...``: as many are listed, there or beside it."""
    for _, text, key in texts_of(contract.data):
        for match in _SHARE.finditer(text) if "/" in text or " of " in text else ():
            listed = _ID.findall(match["list"] or "")
            beside = listed or _listed_beside(contract.data, key())
            if not beside or len(set(beside)) == int(match["part"]):
                continue
            told = " ".join(match.group().split())[:60]
            message = f"{told!r} says {match['part']}, and {len(set(beside))} of them are listed"
            place = place_of(text, key())
            yield _disagreement(contract, place, message, str(len(set(beside))))
    yield from _share_of_falsifiers(contract)


def _listed_beside(data: Mapping, key: str) -> list[str]:
    """Ids listed in the one list that stands beside a text in its mapping; a falsifier's are its own."""
    if "[" in key or key.split(".")[0] in FALSIFIER_BLOCKS:
        return []
    holder: Value = data
    for part in key.split(".")[:-1]:
        holder = holder.get(part) if isinstance(holder, Mapping) else None
    lists = (
        [one for one in holder.values() if isinstance(one, Sequence)] if isinstance(holder, Mapping) else []
    )
    texts = [str(item) for item in lists[0] if isinstance(item, Text)] if len(lists) == 1 else []
    return texts if texts and all(_ID.match(text) for text in texts) else []


def _share_of_falsifiers(contract: Contract) -> Iterator[Problem]:
    """A status that counts: ``ACTIVE (4/10 bound)`` beside ten falsifiers of which five are."""
    match = _SHARE.search(contract.status)
    rungs = [rung_of(one.status) or "" for one in contract.falsifiers]
    if not match or match["list"] or not any(rungs) or len(rungs) != int(match["whole"]):
        return
    bound = sum(claims_shown(one.status) or rung_of(one.status) == PARTIAL for one in contract.falsifiers)
    if bound != int(match["part"]):
        value = contract.metadata.get("status") or contract.data.get("status")
        place = place_of(value, "metadata.status")
        message = f"{match.group()!r} says {match['part']}, {bound} falsifiers are"
        yield _disagreement(contract, place, message, str(bound))


def status_below_falsifiers(contract: Contract) -> Iterator[Problem]:
    """A contract that is only proposed while each of its falsifiers is shown claims too little."""
    statuses = [one.status for one in contract.falsifiers]
    if is_unbuilt(contract.status) and statuses and all(rung_of(one) == FUNCTIONAL for one in statuses):
        value = contract.metadata.get("status") or contract.data.get("status")
        message = f"the contract is {contract.status}, and all of its falsifiers are {FUNCTIONAL}"
        place = place_of(value, "metadata.status")
        hint = f"write {FUNCTIONAL}, or lower the falsifiers"
        yield problem_at(contract.path, "under-claimed", place, message, subject=contract.id, hint=hint)
