"""The page of a bundle: what was predicted, how it ended, what it rests on, what it still needs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.facts import LaneFacts, Side, Sources
from apr_falsify.evidence.outcome import Ended, Level, Role, TestRecord
from apr_falsify.evidence.report import CheckedReport, bundle_html
from tests.unit.evidence.bundles import CLAIM, facts_of
from tests.unit.evidence.pages import Page, made, tiny

PASSED = TestRecord(name="t.py::test_it", ended=Ended.PASSED)
CONTROL = TestRecord(name="t.py::test_control", ended=Ended.PASSED, role=Role.CONTROL)
FAILED = replace(PASSED, ended=Ended.FAILED, reason="two sources, one was predicted")
SKIPPED = replace(PASSED, ended=Ended.SKIPPED, reason="no apr here")
LIVE = LaneFacts(
    name="rtx4090",
    layers=(0, 1),
    oracle=Side(runtime="hf", version="5.23.0", device="cuda", dtype="f16", model="Qwen/Qwen2.5"),
    subject=Side(runtime="apr", version="0.72.3", model="m.apr"),
)


def page_of(*tests: TestRecord, **changes: Any) -> Page:
    return Page(bundle_html(facts_of(*tests, **changes), None, None, {}))


@pytest.mark.parametrize(
    ("tests", "badge", "said"),
    [
        ((PASSED, CONTROL), "SURVIVED", "FALSIFY-TOY-001 survived: what it predicts was tested and found"),
        (
            (FAILED, CONTROL),
            "FALSIFIED",
            "is falsified: what it predicts does not hold (t.py::test_it: ",
        ),
        ((SKIPPED,), "NOT_RUN", "was not decided, and this bundle shows nothing for or against it"),
        (
            (PASSED, replace(CONTROL, ended=Ended.FAILED)),
            "ERROR",
            "cannot be decided: the measurement itself failed (t.py::test_control: control failed",
        ),
    ],
    ids=["survived", "falsified", "not run", "error"],
)
def test_the_outcome_is_the_first_sentence(tests: tuple[TestRecord, ...], badge: str, said: str) -> None:
    (first,) = page_of(*tests)["h1"]
    assert first.startswith(f"{badge} ")
    assert said in first


def test_prediction_claim_and_every_test_are_told() -> None:
    html = bundle_html(facts_of(FAILED, CONTROL), None, None, {})
    assert f"<strong>Predicted:</strong> {CLAIM['prediction']}" in html
    assert re.search(r"t\.py::test_it</th><td>failed</td><td>prediction</td>", html)
    assert re.search(r"t\.py::test_control</th><td>passed</td><td>control</td>", html)
    assert "two sources, one was predicted" in html
    assert facts_of().claim_sha256 in html


def test_a_test_that_decided_nothing_is_told_as_not_checked() -> None:
    page = page_of(PASSED, replace(SKIPPED, name="t.py::test_other"))
    assert "t.py::test_other: skipped." in page["li"]
    assert any(said.startswith("Not checked: t.py::test_other: skipped") for said in page["p"])


def test_what_a_lane_reported_is_told() -> None:
    page = page_of(replace(PASSED, level=Level.LIVE), CONTROL, lane=LIVE)
    assert "hf 5.23.0, f16 on cuda: Qwen/Qwen2.5" in page["dd"]
    assert "apr 0.72.3, unknown on unknown: m.apr" in page["dd"]
    assert "pytest -m falsify_toy_001 --lane=rtx4090 --evidence-dir=evidence" in page["pre"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("embedded", ""),
        ("unnamed", " --oracle-model=MODEL --subject=RUNTIME:PATH"),
        ("near, changed by options", " --lane=near --oracle-model=MODEL --subject=RUNTIME:PATH"),
    ],
)
def test_the_command_that_runs_it_again_names_only_lanes_that_there_are(name: str, options: str) -> None:
    told = page_of(PASSED, lane=replace(LIVE, name=name))["pre"]
    assert f"pytest -m falsify_toy_001{options} --evidence-dir=evidence" in told


def test_the_bisection_of_a_bundle_is_told_like_any_other() -> None:
    found = made("localised")
    page = Page(bundle_html(facts_of(lane=LIVE), found.bisection, found.traces, {}, weights=tiny().weights))
    assert any("Measured: Layer 0's qkv_bias is wrong" in said for said in page["p"])
    assert {"Where the error is", "Inside the stage that is wrong", "Every stage"} <= set(page["h2"])


def test_digests_alone_are_told_as_attested_and_have_no_map() -> None:
    page = Page(bundle_html(facts_of(lane=LIVE), made("localised").bisection, None, {}))
    assert any("Only digests of the compared stages lie in this bundle" in said for said in page["p"])
    assert any(said.startswith("No map:") for said in page["p"])


def test_without_a_bisection_a_forward_pass_that_was_run_is_told_as_not_shown() -> None:
    assert "The stages: no bisection is in this bundle." in page_of(lane=LIVE)["li"]
    assert not any("no bisection" in said for said in page_of()["li"])


def test_controls_are_told_with_their_verdict() -> None:
    page = Page(bundle_html(facts_of(), None, None, {"scale": made("several").bisection}))
    assert any(said.startswith("scale (several sources): 4 stages are wrong") for said in page["li"])


def test_a_control_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(EvidenceError, match=r"bisection\.json"):
        bundle_html(facts_of(), None, None, {"scale": {"schema": "x"}})


def test_what_it_would_take_is_told() -> None:
    embedded = page_of(sources=Sources(project="toy", uncommitted=("src/toy.py",)))
    assert "For FUNCTIONAL: a run on the lane that the contract's discharge block names." in embedded["li"]
    assert "For FUNCTIONAL: committed sources." in embedded["li"]
    assert "An outcome of SURVIVED." in page_of(FAILED, CONTROL)["li"]


def test_what_a_verification_found_is_told_instead() -> None:
    checked = CheckedReport(
        recomputed=("cosines",), attested=("residuals",), rung="PARTIAL_ALGORITHM_LEVEL", needs=("a pin",)
    )
    page = Page(bundle_html(facts_of(), made("several").bisection, None, {}, checked=checked))
    assert "It earns PARTIAL_ALGORITHM_LEVEL." in page["p"]
    assert "Computed again from the files of this bundle: cosines." in page["p"]
    assert "On the word of the machine that made it: residuals." in page["p"]
    assert "A pin." in page["li"]
    assert "An outcome of SURVIVED." not in page["li"]


def test_text_from_a_contract_or_a_test_is_only_ever_text() -> None:
    text = "</style><script>alert(1)</script>"
    claim = {**CLAIM, "id": text, "prediction": text, "algorithm_evidence": {text: [text]}}
    html = bundle_html(
        facts_of(
            TestRecord(name=text, ended=Ended.FAILED, reason=text),
            claim=claim,
            environment={text: text},
            sources=Sources(project=text, commit=text, uncommitted=(text,)),
            lane=replace(LIVE, name=text, oracle=Side(runtime=text, model=text)),
        )
    )
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("style") == 1
    assert text in page["pre"][-1]
