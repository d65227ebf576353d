"""Re-check a bundle without GPU, torch or network: every file, every figure that follows from the files.

The plan; every step of the code carries its number:

1. Read the files: regular files of names that the format has, within bounds.
2. Read the statement: a Statement v1 with the test-result predicate, about some file and some test.
3. Every file against the statement: none changed, none missing, none extra.
4. The statement against what pins it: ``--expect``, the contract's digest, or a listed key's signature.
5. Read what the bundle says of itself: a known version, every value of its type, not made in the future.
6. The statement follows from the files: written anew it is the same, to the byte.
7. The claim: its digest, and that ``bundle.json`` repeats it.
8. The tests: there are some, they give the outcome, and ``junit.xml`` tells the same.
9. The traces: each stage file as its ``trace.json`` says, each trace as the lane says.
10. The figures of the bisection: recomputed, or attested.

All problems are collected. Where a file is not the one that the statement names, nothing that rests on its
content is looked at any more; what was left out is reported.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_falsify.contracts.claim import canonical_json
from apr_falsify.evidence.facts import Facts
from apr_falsify.evidence.facts_reader import NewerVersionError, read_facts, time_of
from apr_falsify.evidence.files import (
    BISECTION,
    BUNDLE,
    CLAIM,
    ENVELOPE,
    JUNIT,
    REPORT,
    REQUIRED,
    SIDES,
    STATEMENT,
    BundleProblem,
    Contents,
    load_json,
    read_contents,
    sha256,
)
from apr_falsify.evidence.findings import Findings
from apr_falsify.evidence.junit import disagreements, read_junit
from apr_falsify.evidence.outcome import outcome_of
from apr_falsify.evidence.statement import statement_bytes, subjects_of

if TYPE_CHECKING:
    from apr_falsify.formats.weights import Model

SCHEMA = "apr-falsify/evidence-verification/v1"

CLOCK_SKEW = datetime.timedelta(minutes=10)
"""How far the clock of the machine that made a bundle may be ahead of this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What verifying a bundle showed.

    Attributes:
        path: where it lies.
        facts: what it says of itself; ``None`` where that could not be read.
        statement_sha256: digest of its statement; empty where there is none.
        state: ``verified`` where something pins the statement, else ``unpinned``. It says nothing where
            there are problems: see :attr:`holds`.
        pinned_by: what pins it (``digest`` where the expected digest was given, ``signature``).
        signed_by: ids of the listed keys that signed it.
        recomputed: what was computed again and is as the bundle says.
        attested: what only the machine that made it vouches for.
        not_checked: what was not looked at, and why.
        problems: what is wrong with it.
        kinds: file of a bisection -> its kind.

    """

    path: Path
    facts: Facts | None
    statement_sha256: str
    state: str
    pinned_by: tuple[str, ...]
    signed_by: tuple[str, ...]
    recomputed: tuple[str, ...]
    attested: tuple[str, ...]
    not_checked: tuple[str, ...]
    problems: tuple[BundleProblem, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong with it; whether anything pins it, :attr:`state` says."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return one entry of ``bundles`` in schema ``apr-falsify/evidence-verification/v1``."""
        facts = self.facts
        return {
            "path": str(self.path),
            "holds": self.holds,
            "state": self.state if self.holds else "broken",
            "falsifier": None if facts is None else facts.falsifier,
            "outcome": None if facts is None else outcome_of(facts.tests).to_json(),
            "lane": None if facts is None else facts.lane.name,
            "statement_sha256": self.statement_sha256,
            "pinned_by": list(self.pinned_by),
            "signed_by": list(self.signed_by),
            "recomputed": list(self.recomputed),
            "attested": list(self.attested),
            "not_checked": list(self.not_checked),
            "problems": [problem.to_json() for problem in self.problems],
        }


def verify(
    path: Path,
    *,
    pin: str | None = None,
    keys: Mapping[str, str] | None = None,
    weights: Model | None = None,
    now: datetime.datetime | None = None,
) -> Verification:
    """Re-check the bundle at ``path``, a directory or a zip of one.

    Args:
        path: the bundle.
        pin: the digest that its statement must have; ``None`` where nobody gave one.
        keys: the keys whose signatures count: id -> base64 of 32 bytes.
        weights: a model that the bundle's traces ran, to replay them with.
        now: the time; ``None`` for this machine's.

    Raises:
        EvidenceError: it is no bundle at all, or a listed key is no key.
        MissingDependencyError: keys are listed and the bundle is signed, and ``cryptography`` is missing.

    """
    return verify_contents(read_contents(path), pin=pin, keys=keys, weights=weights, now=now)


def verify_contents(
    contents: Contents,
    *,
    pin: str | None = None,
    keys: Mapping[str, str] | None = None,
    weights: Model | None = None,
    now: datetime.datetime | None = None,
) -> Verification:
    """Re-check the files of a bundle, as :func:`verify` does."""
    found, files = Findings(), contents.files
    found.problems += contents.problems  # 1
    digests = contents.digests
    intact = _check_files(files, digests, found)  # 2, 3
    _check_pin(files, digests, pin, keys or {}, found)  # 4
    facts = _facts(files, intact, now, found)  # 5
    if facts is not None:
        _check_derived(facts, files, digests, found)  # 6
        _check_claim(facts, files, intact, found)  # 7
        _check_tests(facts, files, intact, found)  # 8
        if not found.problems:
            _check_measured(facts, files, weights, found)  # 9, 10
    if found.problems:
        found.not_checked.append("the figures that rest on what does not verify")
    if REPORT in files:
        found.not_checked.append(f"{REPORT}: its digest alone; it is made from the other files for reading")
    return Verification(
        path=contents.path,
        facts=facts,
        statement_sha256=digests.get(STATEMENT, ""),
        state="verified" if found.pinned_by else "unpinned",
        pinned_by=tuple(found.pinned_by),
        signed_by=found.signed_by,
        recomputed=tuple(found.recomputed),
        attested=tuple(found.attested),
        not_checked=tuple(found.not_checked),
        problems=tuple(found.problems),
        kinds=found.kinds,
    )


def _check_files(files: Mapping[str, bytes], digests: Mapping[str, str], found: Findings) -> set[str]:
    """Return the files that are those which the statement names."""
    for name in REQUIRED:
        if name not in files:
            found.problem("missing-file", name, "is missing; every bundle has it")
    if STATEMENT not in files:
        return set()
    try:  # 2
        subjects = subjects_of(load_json(files, STATEMENT))
    except (ValueError, KeyError) as error:
        found.problem("bad-statement", STATEMENT, f"is not usable: {error}")
        return set()
    present = {name: digest for name, digest in digests.items() if name not in (STATEMENT, ENVELOPE)}
    for name, digest in subjects.items():  # 3
        if name not in present:
            if name not in REQUIRED:
                found.problem("missing-file", name, "is missing; the statement names it")
        elif present[name] != digest:
            found.problem("changed-file", name, _changed(files[name], present[name], digest))
    for name in present.keys() - subjects.keys():
        found.problem("extra-file", name, "is not in the statement")
    intact = {name for name, digest in present.items() if subjects.get(name) == digest}
    found.recomputed.extend(f"{name}: sha256" for name in sorted(intact))
    return intact


def _changed(data: bytes, present: str, digest: str) -> str:
    if sha256(data.replace(b"\r\n", b"\n")) == digest:
        return (
            "has CRLF for LF: git converted it (core.autocrlf); write 'evidence/** -text' to .gitattributes, "
            "and check it out again"
        )
    return f"was changed: its sha256 is {present[:12]}..., the statement says {digest:.12}..."


def _check_pin(
    files: Mapping[str, bytes],
    digests: Mapping[str, str],
    pin: str | None,
    keys: Mapping[str, str],
    found: Findings,
) -> None:
    digest = digests.get(STATEMENT, "")
    if pin is not None and digest:
        if digest == pin.lower():
            found.pinned_by.append("digest")
        else:
            found.problem("pin-differs", STATEMENT, f"its sha256 is {digest}, expected was {pin:.80}")
    if ENVELOPE not in files or STATEMENT not in files:
        return
    from apr_falsify.evidence.sign import check_envelope

    checked = check_envelope(files[ENVELOPE], files[STATEMENT], keys)
    found.problems += checked.problems
    found.signed_by = checked.signed_by
    found.pinned_by += ["signature"] if checked.signed_by else []
    found.not_checked += [f"the signature of {one}: that key is not listed" for one in checked.unlisted]


def _facts(
    files: Mapping[str, bytes], intact: set[str], now: datetime.datetime | None, found: Findings
) -> Facts | None:
    if BUNDLE not in files:
        return None
    try:
        facts = read_facts(load_json(files, BUNDLE))
    except NewerVersionError as error:
        message = f"{error}: use the version of apr-falsify that wrote it"
        found.problem("newer-version", BUNDLE, message)
        return None
    except (ValueError, KeyError, TypeError) as error:
        if BUNDLE in intact:  # else it was changed, which is reported already
            found.problem("bad-bundle", BUNDLE, f"is not usable: {error}")
        return None
    latest = (now or datetime.datetime.now(datetime.UTC)) + CLOCK_SKEW
    if time_of(facts.created) > latest:
        message = f"it was made at {facts.created}, which is in the future: check both clocks"
        found.problem("created-in-the-future", BUNDLE, message)
    return facts


def _check_derived(
    facts: Facts, files: Mapping[str, bytes], digests: Mapping[str, str], found: Findings
) -> None:
    if STATEMENT not in files or found.problems:  # with a changed file it cannot be the same
        return
    holds = statement_bytes(facts, digests) == files[STATEMENT]
    message = "is not the statement that follows from the other files"
    found.check(
        f"{STATEMENT}: what it says of the bundle", holds, "statement-not-derived", STATEMENT, message
    )


def _check_claim(facts: Facts, files: Mapping[str, bytes], intact: set[str], found: Findings) -> None:
    if not {BUNDLE, CLAIM} <= intact:
        return
    holds = canonical_json(facts.claim) == files[CLAIM] and sha256(files[CLAIM]) == facts.claim_sha256
    found.check("claim digest", holds, "claim-differs", CLAIM, f"is not the claim that {BUNDLE} digests")
    named = facts.claim.get("id")
    if named != facts.falsifier:
        found.problem("claim-differs", CLAIM, f"is of {named!r:.80}, the bundle of {facts.falsifier!r:.80}")


def _check_tests(facts: Facts, files: Mapping[str, bytes], intact: set[str], found: Findings) -> None:
    if BUNDLE not in intact:
        return
    if not facts.tests:
        found.problem("no-tests", BUNDLE, "names no test: nothing was run, so nothing is shown")
    if len({one.name for one in facts.tests}) != len(facts.tests):
        found.problem("duplicate-test", BUNDLE, "names a test twice")
    outcome = outcome_of(facts.tests)
    # The result alone: the reason is prose, and a later version may word it otherwise.
    message = f"says {facts.outcome.result}; its tests give {outcome.result}: {outcome.reason:.200}"
    same = outcome.result is facts.outcome.result
    found.check("outcome", same, "outcome-differs", BUNDLE, message)
    if JUNIT not in intact:
        return
    try:
        words = disagreements(facts.tests, read_junit(files[JUNIT]))
    except ValueError as error:
        found.problem("bad-junit", JUNIT, f"is not usable: {error}")
        return
    message = "; ".join(words[:5])
    found.check(f"{JUNIT}: names and ends of the tests", not words, "junit-differs", JUNIT, message)


def _check_measured(facts: Facts, files: Mapping[str, bytes], weights: Model | None, found: Findings) -> None:
    """Look at traces and figures; only where all files are those of the statement."""
    bisections = [name for name in sorted(files) if name.endswith(BISECTION)]
    if not bisections and not any(f"{side}/trace.json" in files for side in SIDES):
        if facts.lane.oracle or facts.lane.subject:
            found.attested.append("device and lane: self-attested")
        return
    from apr_falsify.evidence.measured import check_measured

    check_measured(facts, files, weights, found)
