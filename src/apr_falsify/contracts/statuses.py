"""Status words: our ladder, and how the words met in the wild map to it (design section 7)."""

from __future__ import annotations

import difflib
import functools
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

# words of a text's life that say "shown": they claim evidence as much as a rung does
_SHOWN = frozenset(
    """
    IMPLEMENTED PROVED PROVEN VERIFIED VALIDATED PASS PASSED PASSING GREEN TESTED SATISFIED CONFIRMED SURVIVED
    HOLDS MET COVERED
    """.split()  # noqa: SIM905 - words read best as words
)
# of a task these say the same
_DONE = frozenset(("DONE", "COMPLETE", "COMPLETED", "SHIPPED", "CLOSED", "FIXED"))
# words that say "not shown"
_OPEN = UNBUILT | frozenset(
    """
    FAIL FAILED FAILING RED SKIPPED NOT_RUN NOT_STARTED STARTED IN_PROGRESS UNVERIFIED UNTESTED UNMET VIOLATED
    REFUTED FALSIFIED UNCOVERED REGRESSED
    """.split()  # noqa: SIM905 - words read best as words
)
_UNWRITTEN = UNBUILT | {"PLANNED", "UNIMPLEMENTED", "NOT_IMPLEMENTED", "NOT_STARTED", "SCAFFOLDED", "UNBOUND"}

_WORDS = {word: rung for rung, words in _RUNGS.items() for word in words.split()}
_HEAD = re.compile(r"^[\s`'\"*]*([A-Za-z][A-Za-z0-9]*(?:[_-][A-Za-z0-9]+)*)")


def word_of(status: str) -> str:
    """``FUNCTIONAL (4/4)`` -> ``FUNCTIONAL``, ``Blocked-Upstream`` -> ``BLOCKED_UPSTREAM``."""
    match = _HEAD.match(status)
    return match[1].upper().replace("-", "_") if match else ""


def root_of(status: str) -> str:
    """Return the word of the tables that a status is of: its own, or the one that a remark is appended to.

    ``ACTIVE_RUNTIME`` is ACTIVE, ``PLANNED_M1`` is PLANNED. PARTIAL and FUNCTIONAL are never taken from a
    longer word, which may take back what they claim: ``FUNCTIONAL_SOON`` is none. Empty where there is none.
    """
    word = word_of(status)
    if word in _WORDS or word in LIFECYCLE:
        return word
    heads = [word[:at] for at, char in enumerate(word) if char == "_"]
    roots = (head for head in reversed(heads) if head in LIFECYCLE or _WORDS.get(head) == BLOCKER)
    return "" if _is_misspelt(word) else next(roots, "")


@functools.cache
def _is_misspelt(word: str) -> bool:
    """Whether a word is one of the tables but for a letter or two."""
    return bool(difflib.get_close_matches(word, known_words(), n=1, cutoff=0.9))


def likely_word(status: str) -> str:
    """Return the word that a status is a misspelling of; empty where none is near enough to be meant."""
    word = word_of(status)
    match = difflib.get_close_matches(word, known_words(), n=1, cutoff=0.8)
    is_part = bool(match) and (word.startswith(match[0]) or match[0].startswith(word))
    return match[0] if match and not is_part else ""


def rung_of(status: str) -> str | None:
    """Return the rung a status claims, or None where it claims none."""
    return _WORDS.get(root_of(status))


def is_unbuilt(status: str) -> bool:
    """Whether a text of this status has not been built yet, so that what it names may well be absent."""
    return root_of(status) in UNBUILT


def says_absent(status: str) -> bool:
    """Whether a status says that something needed is missing: what it names may well be absent."""
    return rung_of(status) == BLOCKER or is_unbuilt(status)


def is_unwritten(status: str) -> bool:
    """Whether a status says that the code, or the test, is still to be written."""
    return root_of(status) in _UNWRITTEN


def claims_shown(status: str, *, of_task: bool = False) -> bool:
    """Whether a status says that something has been shown: it needs evidence."""
    word = root_of(status)
    return _WORDS.get(word) == FUNCTIONAL or word in _SHOWN or (of_task and word in _DONE)


def says_open(status: str) -> bool:
    """Whether a status says that nothing has been shown yet, or that it failed."""
    word = root_of(status)
    return _WORDS.get(word) == BLOCKER or word in _OPEN


def is_known(status: str) -> bool:
    """Whether the word is in one of the tables, so that its meaning is certain."""
    words = status.split()
    joined = "_".join(words).upper().replace("-", "_")  # "in progress" is IN_PROGRESS
    if root_of(status) or joined in LIFECYCLE or joined in _WORDS:
        return True
    return len(words) >= 3 and not words[0].isupper() and words[1][:1].isalpha()  # a sentence, no word


@functools.cache
def known_words() -> tuple[str, ...]:
    """All words, ours first: what a misspelt one is matched against."""
    return (*LADDER, *sorted({*_WORDS, *LIFECYCLE} - set(LADDER)))


def weakest(rungs: list[str]) -> str:
    """Return the lowest rung of several."""
    return min(rungs, key=LADDER.index)
