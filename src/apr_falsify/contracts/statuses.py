"""Status words: our ladder, and how the words met in the wild map to it (design section 7)."""

from __future__ import annotations

import re

BLOCKER = "BLOCKER_FIXTURE_ABSENT"
PARTIAL = "PARTIAL_ALGORITHM_LEVEL"
FUNCTIONAL = "FUNCTIONAL"
LADDER = (BLOCKER, PARTIAL, FUNCTIONAL)

# words that stand for a rung
_RUNGS = {
    BLOCKER: "BLOCKER_FIXTURE_ABSENT BLOCKER BLOCKED BLOCKER_UPSTREAM_MISSING BLOCKED_UPSTREAM "
    "NOT_DISCHARGED PLANNED UNIMPLEMENTED NOT_IMPLEMENTED FIXTURE_ABSENT UNBOUND SCAFFOLDED",
    PARTIAL: "PARTIAL_ALGORITHM_LEVEL PARTIAL ALGORITHM_LEVEL PARTIAL_DISCHARGE PARTIALLY_DISCHARGED "
    "ALGORITHM_BOUND PARTIAL_ALGORITHM",
    FUNCTIONAL: "FUNCTIONAL DISCHARGED LIVE_DISCHARGED FULLY_DISCHARGED FULL_DISCHARGE LIVE_DISCHARGE "
    "DISCHARGED_LIVE",
}
# words that say where a text is in its life, and claim nothing about evidence
LIFECYCLE = frozenset(
    """
    PROPOSED DRAFT ACTIVE ENFORCED IMPLEMENTED ACCEPTED APPROVED REVIEW IN_REVIEW IN_PROGRESS WIP
    PENDING TODO OPEN CLOSED DEPRECATED SUPERSEDED RETIRED OBSOLETE REJECTED WITHDRAWN SHIPPED
    STABLE EXPERIMENTAL FINAL PASS PASSED PASSING FAIL FAILED FAILING GREEN RED SKIPPED NOT_RUN
    VERIFIED VALIDATED PROVEN PROVED TESTED UNTESTED DONE COMPLETE COMPLETED READY AUTHORITATIVE
    LOCKED KAIZEN STUB REGISTERED PUBLISHED RELEASED FROZEN ARCHIVED NEW UNKNOWN NONE NA SURVIVED
    FALSIFIED REFUTED CONFIRMED DEFERRED SATISFIED MET UNMET HOLDS VIOLATED NOT_STARTED STARTED
    UNVERIFIED AUTOMATED MANUAL COVERED UNCOVERED WONTFIX BOUND OBSERVED MEASURED REGRESSED FIXED ENABLED
    DISABLED
    """.split()  # noqa: SIM905 - words read best as words
)
# a text in one of these has not been built yet: what it names may well be absent
UNBUILT = frozenset(
    """
    PROPOSED DRAFT PLANNED TODO PENDING WIP OPEN NEW STUB DEFERRED EXPERIMENTAL
    """.split()  # noqa: SIM905 - a table of words reads best as words
)

_WORDS = {word: rung for rung, words in _RUNGS.items() for word in words.split()}
_HEAD = re.compile(r"^[\s`'\"*]*([A-Za-z][A-Za-z0-9]*(?:[_-][A-Za-z0-9]+)*)")


def word_of(status: str) -> str:
    """``FUNCTIONAL (4/4)`` -> ``FUNCTIONAL``, ``Blocked-Upstream`` -> ``BLOCKED_UPSTREAM``."""
    match = _HEAD.match(status)
    return match[1].upper().replace("-", "_") if match else ""


def rung_of(status: str) -> str | None:
    """Return the rung a status claims, or None where it claims none."""
    return _WORDS.get(word_of(status))


def is_known(status: str) -> bool:
    """Whether the word is in one of the tables, so that its meaning is certain."""
    word = word_of(status)
    words = status.split()
    joined = "_".join(words).upper().replace("-", "_")  # "in progress" is IN_PROGRESS
    if word in _WORDS or word in LIFECYCLE or joined in LIFECYCLE or joined in _WORDS:
        return True
    return len(words) >= 3 and not words[0].isupper() and words[1][:1].isalpha()  # a sentence, no word


def known_words() -> list[str]:
    """All words, ours first: what a misspelt one is matched against."""
    return [*LADDER, *sorted({*_WORDS, *LIFECYCLE} - set(LADDER))]


def weakest(rungs: list[str]) -> str:
    """Return the lowest rung of several."""
    return min(rungs, key=LADDER.index)
