"""``statement.json``: an in-toto Statement v1 about a bundle, with the test-result predicate v0.1.

Sources: the in-toto Attestation Framework, spec/v1/statement.md, spec/v1/resource_descriptor.md and
spec/predicates/test-result.md. The statement follows from the other files alone, to the byte: whoever has
those can write it anew, so a changed byte of the statement shows even where nothing pins it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apr_falsify.evidence.facts import SCHEMA, Facts, Side
from apr_falsify.evidence.files import ENVELOPE, STATEMENT, json_bytes
from apr_falsify.evidence.outcome import Ended, Result
from apr_falsify.reading import items, mapping, text

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"

_RESULT: Mapping[Result, str] = {Result.SURVIVED: "PASSED", Result.FALSIFIED: "FAILED"}
"""What the predicate calls a conclusive result; the others are ``WARNED``, which promotes nothing."""

_LIST: Mapping[Ended, str] = {
    Ended.PASSED: "passedTests",
    Ended.FAILED: "failedTests",
    Ended.ERROR: "failedTests",
}
"""How a test ended -> the predicate's list that names it; any other way is ``warnedTests``."""


def statement_bytes(facts: Facts, digests: Mapping[str, str]) -> bytes:
    """Return ``statement.json`` of a bundle.

    Args:
        facts: what ``bundle.json`` says.
        digests: name -> sha256 of the bundle's files; those of the statement itself are passed over.

    """
    subjects = [name for name in sorted(digests) if name not in (STATEMENT, ENVELOPE)]
    statement = {
        "_type": TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": _RESULT.get(facts.outcome.result, "WARNED"),
            "configuration": list(_configuration(facts, digests)),
            **_tests(facts),
        },
    }
    return json_bytes(statement)


def _tests(facts: Facts) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for one in facts.tests:
        lists[_LIST.get(one.ended, "warnedTests")].append(one.name)
    return {name: sorted(names) for name, names in lists.items()}


def _configuration(facts: Facts, digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What was run: the claim, the code it rests on, models, binaries, and the compared traces."""
    about = {
        "schema": SCHEMA,
        "contract": facts.contract,
        "contractVersion": facts.contract_version,
        "outcome": facts.outcome.result.value,
        "lane": facts.lane.name,
        "created": facts.created,
        "tool": facts.tool,
    }
    yield {**_resource(f"claim/{facts.falsifier}", facts.claim_sha256), "annotations": about}
    for name in sorted(facts.bound.functions):
        yield _resource(f"function/{name}", facts.bound.functions[name])
    for side, found in (("oracle", facts.lane.oracle), ("subject", facts.lane.subject)):
        yield from _run(side, found)
        if f"{side}/trace.json" in digests:
            yield _resource(f"trace/{side}", digests[f"{side}/trace.json"])


def _run(side: str, found: Side | None) -> Iterator[dict[str, Any]]:
    if found is None:
        return
    about = {"runtime": found.runtime, "version": found.version, "device": found.device, "dtype": found.dtype}
    if found.model_sha256 is not None:
        annotations = {**about, "model": found.model}
        yield {**_resource(f"model/{side}", found.model_sha256), "annotations": annotations}
    if found.binary_sha256 is not None:
        yield {**_resource(f"binary/{side}", found.binary_sha256), "annotations": about}


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def subjects_of(data: object) -> dict[str, str]:
    """Return name -> sha256 of the files that a statement is about.

    Raises:
        ValueError: it is no Statement v1 with the test-result predicate, or names no file or no test.

    """
    found = mapping(data, "it")
    for key, expected in (("_type", TYPE), ("predicateType", PREDICATE_TYPE)):
        if found.get(key) != expected:
            raise ValueError(f"its {key} is {found.get(key)!r:.120}, not {expected!r}")
    subjects: dict[str, str] = {}
    for one in items(found.get("subject"), "subject"):
        descriptor = mapping(one, "a subject")
        name = text(descriptor.get("name"), "a subject's name")
        if name in subjects:
            raise ValueError(f"the subject {name!r:.120} is there twice")
        digest = mapping(descriptor.get("digest"), "a subject's digest")
        subjects[name] = text(digest.get("sha256"), f"the sha256 of {name!r:.120}")
    if not subjects:
        raise ValueError("it has no subject: it is about no file")
    if not _named_tests(mapping(found.get("predicate"), "its predicate")):
        raise ValueError("its predicate names no test")
    return subjects


def _named_tests(predicate: Mapping[str, Any]) -> list[str]:
    lists = [items(predicate.get(name, ()), name) for name in ("passedTests", "warnedTests", "failedTests")]
    return [text(name, "a test's name") for names in lists for name in names]
