"""Small bundles for tests that break them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.evidence.bundle import Draft
from apr_falsify.evidence.facts import Bound, Facts, LaneFacts, Side, Sources
from apr_falsify.evidence.outcome import Ended, Role, TestRecord, outcome_of
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import small_model

CLAIM = {
    "id": "FALSIFY-TOY-001",
    "rule": "the attention block computes what the reference computes",
    "prediction": "no stage of it introduces an error",
    "test": "pytest -m falsify_toy_001",
}
TESTS = (
    TestRecord(name="tests/test_toy.py::test_a_correct_subject_shows_none", ended=Ended.PASSED),
    TestRecord(
        name="tests/test_toy.py::TestControls::test_a_fault_is_seen[scale-2]",
        ended=Ended.PASSED,
        role=Role.CONTROL,
        seconds=0.25,
    ),
)
TOKENS = (3, 1)
STAGES = ("attn_norm", "qkv_matmul", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax")


def digest_of(value: object) -> str:
    """The digest of a claim, computed here and not by the code under test."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def facts_of(*tests: TestRecord, **changes: Any) -> Facts:
    """Return facts about ``tests`` (:data:`TESTS` where none is given), with ``changes``."""
    records = tests or TESTS
    claim: Mapping[str, Any] = changes.pop("claim", CLAIM)
    values: dict[str, Any] = {
        "falsifier": str(claim["id"]),
        "contract": "C-TOY",
        "contract_version": "1.0.0",
        "contract_path": "contracts/toy-v1.yaml",
        "claim": claim,
        "claim_sha256": digest_of(claim),
        "outcome": outcome_of(records),
        "tests": records,
        "lane": LaneFacts(name="embedded"),
        "bound": Bound(functions={"src/toy.py::attend": "a" * 64}, unbound={"aprender:attend": "Rust"}),
        "sources": Sources(project="toy", commit="0" * 40),
        "environment": {"python": "3.11.7"},
        "created": "2026-11-22T12:00:00+00:00",
        "tool": "apr-falsify 0.1.0",
    }
    return Facts(**{**values, **changes})


def small_traces(
    change: Callable[[Trace], Trace] = lambda trace: trace, stages: tuple[str, ...] = STAGES
) -> tuple[Trace, Trace]:
    """Return an oracle's and a subject's trace of a small model; ``change`` spoils the subject's."""
    request = Request(tokens=TOKENS, layers=range(1), stages=stages)
    return tuple(
        side(capture(small_model(), request, MemorySink())) for side in (lambda trace: trace, change)
    )


def scaled(stage: str, factor: float) -> Callable[[Trace], Trace]:
    """Return what multiplies a stage of layer 0."""

    def change(trace: Trace) -> Trace:
        stages = dict(trace.stages)
        stages[0, stage] = replace(stages[0, stage], data=stages[0, stage].data * factor)
        return replace(trace, stages=stages)

    return change


def lane_of(oracle: Trace, subject: Trace) -> LaneFacts:
    """Return the lane that two traces were made on."""

    def side(trace: Trace) -> Side:
        said = trace.provenance
        return Side(
            runtime=said.runtime,
            version=said.version,
            device=said.device,
            dtype=said.dtype,
            model=said.model,
            model_sha256=said.model_sha256,
            binary_sha256=said.binary_sha256,
        )

    return LaneFacts(
        name="embedded", tokens=oracle.tokens, layers=(0, 1), oracle=side(oracle), subject=side(subject)
    )


def measured_draft(
    change: Callable[[Trace], Trace] = lambda trace: trace,
    *,
    stages: tuple[str, ...] = STAGES,
    **changes: Any,
) -> tuple[Draft, Bisection]:
    """Return the draft of a bundle with traces and a bisection, and the bisection itself."""
    oracle, subject = small_traces(change, stages)
    found = bisect(oracle, subject, weights=small_model().weights, stages=stages)
    facts = facts_of(lane=lane_of(oracle, subject), **changes)
    return Draft(facts=facts, bisection=found.to_json(), oracle=oracle, subject=subject), found


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
