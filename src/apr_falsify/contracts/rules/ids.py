"""Ids that a contract gives, and ids of falsifiers and obligations that it cites."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.model import CitedId, Contract, entries, place_of, text_of
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.rules.counts import texts_of
from apr_falsify.contracts.source import Mapping, Text

_NUMBERED = re.compile(r"^(.+-)\d+[a-z]?$")
_AN_ID = re.compile(r"^[A-Z][A-Z0-9]*(?:[-_][A-Z0-9]+)+$")
_GONE_OR_TO_COME = re.compile(
    r"\b(?:remov\w+|renam\w+|retir\w+|supersed\w+|merg\w+|drop\w*|withdr\w+|replac\w+|deprecat\w+|delet\w+|split|"
    r"formerly|previously|moved|folded|obsolete\w*|renumber\w+|will|plan\w*|future|follow-?up|later|todo|reserved|"
    r"upcoming|next|propos\w+|not yet|to be)\b",
    re.IGNORECASE,
)
_ENDS = (". ", "; ", "\n")
_OBLIGATION_KEYS = ("obligation", "obligations", "proof_obligation", "obligation_id", "obligation_ids")
_CITING = ("kani_harnesses", "lean_theorems", "falsification_tests", "falsifiers", "gates")


def registered_ids(contract: Contract) -> tuple[str, ...]:
    """Every id that the contract gives to one of its entries."""
    falsifiers = [one.id for one in contract.falsifiers]
    given = [str(text) for key, text, _ in texts_of(contract.data) if key == "id"]
    return tuple(dict.fromkeys(one for one in (*falsifiers, *given) if one))


def cited_ids(contract: Contract) -> Iterator[CitedId]:
    """Ids of the families of its own falsifiers that the contract's texts cite, where they claim to exist."""
    own = {one.id for one in contract.falsifiers}
    for block in ("proof_obligations", "kani_harnesses"):
        items = (item for _, item in entries(contract.data.get(block), block))
        own |= {text_of(item, "id") for item in items if isinstance(item, Mapping)}
    families = {match[1] for one in own if (match := _NUMBERED.match(one))}
    if not families:
        return
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(families)))})\d+[a-z]?(?![\w-])")
    seen = {one.id for one in cited_obligations(contract)}  # told by themselves
    for key, text, where in texts_of(contract.data):
        if key == "id":
            continue
        for match in pattern.finditer(text):
            if match.group() in own or match.group() in seen or _is_excused(text, match.start()):
                continue
            seen.add(match.group())
            yield CitedId(id=match.group(), place=_place_in(text, match.start(), where()))


def _is_excused(text: str, at: int) -> bool:
    """Whether the sentence around ``at`` says that what it cites is gone, or still to come."""
    start = max(text.rfind(mark, 0, at) for mark in _ENDS) + 1
    end = min((found for mark in _ENDS if (found := text.find(mark, at)) >= 0), default=len(text))
    return bool(_GONE_OR_TO_COME.search(text[start:end]))


def _place_in(text: Text, at: int, key: str) -> Place:
    """Where a part of a text stands: in a literal block, on its own line."""
    place = place_of(text, key)
    if not text.is_block:
        return place
    return Place(line=place.line + 1 + text.count("\n", 0, at), column=1, key=key)


def cited_obligations(contract: Contract) -> Iterator[CitedId]:
    """Ids of obligations that harnesses and falsifiers point to, where the contract gives its own any."""
    block = contract.data.get("proof_obligations")
    own = [item for _, item in entries(block, "") if isinstance(item, Mapping)]
    known = {text_of(item, key) for item in own for key in ("id", "name", "property")} - {""}
    if isinstance(block, Mapping):
        known |= set(block)
    if not any(text_of(item, "id") for item in own) and not isinstance(block, Mapping):
        return
    for name in _CITING:
        for key, item in entries(contract.data.get(name), name):
            for which in _OBLIGATION_KEYS if isinstance(item, Mapping) else ():
                assert isinstance(item, Mapping)
                for where, text in entries(item.get(which), f"{key}.{which}"):
                    if isinstance(text, Text) and _AN_ID.match(text) and text not in known:
                        yield CitedId(id=str(text), place=place_of(text, where))
