"""Rules on statuses: what a status word claims must be carried by what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.model import Contract, place_of, text_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import (
    BLOCKER,
    FUNCTIONAL,
    LADDER,
    PARTIAL,
    is_known,
    is_unbuilt,
    likely_word,
    rung_of,
    weakest,
    word_of,
)

# phrasings by which a text says that something does not exist yet; each is a whole thought, since a single
# word such as "pending" or "deferred" is as often about the live run, which PARTIAL does not claim
_NOT_YET = (
    r"\b(?:lands?|arrives?|comes?|follows?|ships?|delivered|done|landing)\s+in\s+(?:a\s+)?(?:follow-?up|later|future|separate|subsequent)\b",
    r"\b(?:not|isn't|aren't|hasn't\s+been|haven't\s+been)\s+yet\s+(?:been\s+)?(?:implemented|wired|written|built|merged|landed|there|available|captured|emitted|supported)",
    r"\b(?:is|are|was|were|be|has|have)\s+not\s+(?:been\s+)?(?:implemented|wired|written|built)\s+yet\b",
    r"\b(?:yet|still)\s+to\s+be\s+(?:implemented|wired|written|built|added|merged)\b",
    r"\bto\s+be\s+(?:implemented|wired|written|built|added)\s+(?:later|in\b|by\b|once\b|when\b)",
    r"\bwill\s+be\s+(?:implemented|wired|written|added)\b",
    r"\b(?:unimplemented|not\s+implemented)\b",
    r"\bimplementation\s+(?:is\s+)?(?:pending|deferred|missing|to\s+follow)\b",
    r"\b(?:TODO|FIXME|TBD)\b",
    r"\bonce\s+the\s+\w+\s+(?:gains?|has|lands?|exists?|is\s+(?:implemented|wired|written))\b",
)
# one of these is in every phrasing: looked for first, since nearly every text has none
_NOT_YET_HINTS = """
    follow later future separate subsequent yet implement still todo fixme tbd once
    """.split()  # noqa: SIM905 - words read best as words
_NOT_YET_ANY = re.compile("|".join(_NOT_YET), re.IGNORECASE)


def unknown_status(contract: Contract) -> Iterator[Problem]:
    """A falsifier's status, and a contract's own, is a word of the tables."""
    for falsifier in contract.falsifiers:
        if falsifier.status_place and not is_known(falsifier.status):
            message = f"status {falsifier.status!r} is not a known word"
            yield problem_at(
                contract.path,
                "unknown-status",
                falsifier.status_place,
                message,
                subject=falsifier.id,
                hint=_word_hint(falsifier.status),
            )
    if contract.status and not is_known(contract.status):
        place = _status_place(contract)
        message = f"status {contract.status!r} is not a known word"
        hint = _word_hint(contract.status)
        yield problem_at(contract.path, "unknown-status", place, message, subject="metadata", hint=hint)


def _word_hint(status: str) -> str:
    """The word that was meant, where one is near; else what may stand there, without a guess."""
    likely = likely_word(status)
    if likely:
        return f"did you mean {likely!r}?"
    return f"a rung ({', '.join(LADDER)}) or where the text is in its life (PROPOSED, ACTIVE, DEPRECATED)"


def _status_place(contract: Contract) -> Place:
    for holder, key in ((contract.metadata, "metadata.status"), (contract.data, "status")):
        value = holder.get("status")
        if isinstance(value, Text):
            return place_of(value, key)
    return Place(line=1, column=1, key="metadata.status")


def metadata_status(contract: Contract) -> Iterator[Problem]:
    """The contract's own status is that of its weakest falsifier, where both are rungs of the ladder."""
    own = rung_of(contract.status) if contract.status else None
    rungs = [rung for one in contract.falsifiers if (rung := rung_of(one.status))]
    if own is None or not rungs or is_unbuilt(contract.status):
        return
    lowest = weakest(rungs)
    if own != lowest:
        who = next(one for one in contract.falsifiers if rung_of(one.status) == lowest)
        message = f"metadata.status is {contract.status}, the weakest falsifier ({who.id}) is {lowest}"
        yield problem_at(
            contract.path,
            "metadata-status",
            _status_place(contract),
            message,
            subject=contract.id,
            hint=f"write {lowest}",
        )


def says_not_yet(contract: Contract) -> Iterator[Problem]:
    """A text that says 'not yet' beside a status that says the code exists."""
    for falsifier in contract.falsifiers:
        if rung_of(falsifier.status) not in (PARTIAL, FUNCTIONAL):
            continue
        for key, block in falsifier.evidence:
            for place, text in _texts(block, key):
                match = _not_yet(text)
                if match:
                    message = (
                        f"{falsifier.id} is {word_of(falsifier.status)}, yet this says {match.group()!r}"
                    )
                    hint = f"if it is true, the status is {BLOCKER}"
                    yield problem_at(
                        contract.path, "says-not-yet", place, message, subject=falsifier.id, hint=hint
                    )


def _not_yet(text: str) -> re.Match[str] | None:
    lowered = text.lower()
    if not any(hint in lowered for hint in _NOT_YET_HINTS):
        return None
    return _NOT_YET_ANY.search(" ".join(text.split()))


def _texts(value: Value, key: str) -> Iterator[tuple[Place, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}")
    elif isinstance(value, Sequence):
        for at, item in enumerate(value):
            yield from _texts(item, f"{key}[{at}]")
    elif value:
        yield place_of(value, key), str(value)


def functional_without_lane(contract: Contract) -> Iterator[Problem]:
    """FUNCTIONAL with a bundle needs a discharge block to say which lane the bundle must come from."""
    for falsifier in contract.falsifiers:
        bundle = falsifier.data.get("evidence")
        claims = rung_of(falsifier.status) == FUNCTIONAL and isinstance(bundle, Mapping)
        if claims and isinstance(bundle, Mapping) and text_of(bundle, "bundle"):
            own = falsifier.data.get("discharge") or contract.data.get("discharge")
            if own is None:
                place = falsifier.status_place or falsifier.place
                message = f"{falsifier.id} is FUNCTIONAL by a bundle, and no discharge block names its lane"
                yield problem_at(
                    contract.path, "functional-without-lane", place, message, subject=falsifier.id
                )
