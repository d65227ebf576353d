"""What a page tells of an evidence bundle beside its bisection."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from apr_falsify.evidence.facts import CHANGED_LANE, EMBEDDED_LANE, UNNAMED_LANE, Facts
from apr_falsify.evidence.outcome import HOLLOW, Result
from apr_falsify.evidence.page import words
from apr_falsify.evidence.page.view import PageView

OUTCOMES: Mapping[Result, tuple[str, str]] = {
    Result.SURVIVED: ("good", "{id} survived: what it predicts was tested and found true ({reason})."),
    Result.FALSIFIED: ("bad", "{id} is falsified: what it predicts does not hold ({reason})."),
    Result.NOT_RUN: (
        "warn",
        "{id} was not decided, and this bundle shows nothing for or against it ({reason}).",
    ),
    Result.ERROR: ("warn", "{id} cannot be decided: the measurement itself failed ({reason})."),
}
"""Result -> colour class, and the page's first sentence."""


def undone(facts: Facts, view: PageView | None) -> list[str]:
    """Return what this bundle does not show."""
    said = [
        f"{one.name}: {one.ended.value}" for one in facts.tests if one.ended.value not in ("passed", "failed")
    ]
    said += [f"{one.name}: {HOLLOW}" for one in facts.tests if one.is_hollow]
    if view is not None:
        said += words.unchecked(view)
    elif facts.lane.oracle is not None:
        said.append("the stages: no bisection is in this bundle")
    said += [f"{name} is not bound to its code: {why}" for name, why in facts.bound.unbound.items()]
    return said


def next_rung(facts: Facts) -> tuple[str, ...]:
    """Return what a reader must know before it counts for more, as far as the bundle alone tells."""
    said = []
    if facts.outcome.result is not Result.SURVIVED:
        said.append("an outcome of SURVIVED")
    if facts.lane.name == EMBEDDED_LANE:
        said.append("for FUNCTIONAL: a run on the lane that the contract's discharge block names")
    elif not any(one.shows_the_subject for one in facts.tests):
        said.append("for FUNCTIONAL: a test that measures the lane's subject")
    if facts.sources.uncommitted:
        said.append("for FUNCTIONAL: committed sources")
    said.append("the contract that pins this bundle's statement.json, or a signature by a key that it lists")
    return tuple(said)


def claim_rows(claim: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the claim's texts; what is a mapping is reported key by key."""
    told = []
    for name, value in claim.items():
        if name == "id" or value in (None, "", [], {}):
            continue
        told.append((name.replace("_", " "), _plain(value)))
    return told


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    return " ".join(str(value).split())


def commands(facts: Facts) -> list[tuple[str, str]]:
    """Return the commands that check the bundle and make it again, each with what it does."""
    marker = facts.falsifier.lower().replace("-", "_")
    options = [f"-m {shlex.quote(marker)}", *_lane_options(facts.lane.name), "--evidence-dir=evidence"]
    return [
        ("Check this bundle; needs no model and no GPU", "apr-falsify evidence verify ."),
        ("Run the falsifier again", f"pytest {' '.join(options)}"),
    ]


def _lane_options(name: str) -> Iterator[str]:
    """Yield the options that choose a lane; where a machine keeps its models is for the reader to say."""
    own = name.removesuffix(CHANGED_LANE)
    if own not in (EMBEDDED_LANE, UNNAMED_LANE):
        yield f"--lane={shlex.quote(own)}"
    if own != name or own == UNNAMED_LANE:
        yield "--oracle-model=MODEL --subject=RUNTIME:PATH"
