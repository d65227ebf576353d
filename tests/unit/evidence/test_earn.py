"""What a bundle earns: each reason against a rung alone, on a bundle that has nothing else against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.contracts.claim import Claim, Pin
from apr_falsify.contracts.standing import ABSENT, BROKEN, FRESH, STALE
from apr_falsify.contracts.statuses import BLOCKER, FUNCTIONAL, PARTIAL
from apr_falsify.evidence.discharge import unmet
from apr_falsify.evidence.earn import earned, state_of
from apr_falsify.evidence.facts import TOOL, Bound, Facts, LaneFacts, Side, Sources
from apr_falsify.evidence.files import BundleProblem
from apr_falsify.evidence.outcome import Ended, Level, Outcome, Result, Role, SeenRun, TestRecord
from apr_falsify.evidence.verify import Verification

DISCHARGE = {
    "lane": "rtx4090",
    "subject": {"runtime": "apr", "version": ">=0.72"},
    "subject_device": "cuda",
    "oracle": {"runtime": "transformers", "version": ">=5.0", "device": "cuda", "dtype": "f16"},
    "model": "Qwen/Qwen2.5-Coder-7B-Instruct",
    "prompt": "What is 2+2?",
    "layers": "0..1",
}
FIELDS = {"id": "F-1", "rule": "r", "discharge": DISCHARGE}
CLAIM = Claim(
    falsifier="F-1",
    contract="C-X",
    version="1.0.0",
    path=Path("contracts/x.yaml"),
    rung=PARTIAL,
    fields=FIELDS,
    pin=Pin(bundle="evidence/F-1", statement_sha256="ab" * 32),
    keys={},
)
LANE = LaneFacts(
    name="rtx4090",
    prompt="What is 2+2?",
    tokens=(1, 2),
    layers=(0, 1),
    oracle=Side(
        runtime="hf", version="5.23.0", device="cuda", dtype="float16", model="Qwen/Qwen2.5-Coder-7B-Instruct"
    ),
    subject=Side(runtime="apr", version="0.72.3", device="cuda:0", model="model.apr"),
)
TESTS = (
    TestRecord(name="t.py::test_one", ended=Ended.PASSED),
    TestRecord(
        name="t.py::test_live",
        ended=Ended.PASSED,
        level=Level.LIVE,
        measured=(SeenRun.ORACLE, SeenRun.SUBJECT),
    ),
    TestRecord(name="t.py::test_control", ended=Ended.PASSED, role=Role.CONTROL),
)
BOUND = Bound(functions={"a.py::f": "01", "t.py::test_one": "02"}, unbound={"lib:g": "another source"})
FACTS = Facts(
    falsifier="F-1",
    contract="C-X",
    contract_version="1.0.0",
    contract_path="contracts/x.yaml",
    claim=FIELDS,
    claim_sha256=CLAIM.sha256,
    outcome=Outcome(result=Result.SURVIVED, reason="2 predictions and 1 controls passed"),
    tests=TESTS,
    lane=LANE,
    bound=BOUND,
    sources=Sources(project="p", commit="c0ffee"),
    environment={},
    created="2026-12-01T00:00:00Z",
    tool="apr-falsify 0",
)


def verification(facts: Facts | None = FACTS, **changes: Any) -> Verification:
    values: dict[str, Any] = {
        "path": Path("evidence/F-1"),
        "facts": facts,
        "statement_sha256": "ab" * 32,
        "state": "verified",
        "pinned_by": ("digest",),
        "signed_by": (),
        "recomputed": (),
        "attested": (),
        "not_checked": (),
        "problems": (),
    }
    return Verification(**values | changes)


def codes(facts: Facts = FACTS, *, claim: Claim = CLAIM, now: Bound = BOUND, **changes: Any) -> list[str]:
    answer = earned(
        verification(facts, **changes), claim, bound_now=now, project="p", not_sources=("evidence/",)
    )
    return [one.code for one in answer.refusals]


def rung(facts: Facts = FACTS, **changes: Any) -> str:
    return earned(verification(facts, **changes), CLAIM, bound_now=BOUND, project="p").rung


def test_a_bundle_of_the_named_lane_with_nothing_against_it_earns_functional() -> None:
    assert codes() == []
    assert rung() == FUNCTIONAL


def sourced(**changes: Any) -> Facts:
    return replace(FACTS, sources=replace(FACTS.sources, **changes))


def ended(name: str, how: Ended, result: Result) -> Facts:
    tests = tuple(replace(one, ended=how) if one.name == name else one for one in TESTS)
    return replace(FACTS, tests=tests, outcome=Outcome(result=result, reason="told"))


OTHER_CLAIM = replace(CLAIM, fields={**FIELDS, "rule": "another"})

BARS_PARTIAL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "another falsifier": (["other-falsifier"], {"facts": replace(FACTS, falsifier="F-2")}),
    "another contract": (["other-contract"], {"facts": replace(FACTS, contract="C-Y")}),
    "another project": (["other-project"], {"facts": sourced(project="q")}),
    "a falsified prediction": (
        ["not-survived"],
        {"facts": ended("t.py::test_one", Ended.FAILED, Result.FALSIFIED)},
    ),
    "a failed control": (
        ["control-failed", "not-survived"],
        {"facts": ended("t.py::test_control", Ended.FAILED, Result.ERROR)},
    ),
    "a skipped test": (["not-survived"], {"facts": ended("t.py::test_one", Ended.SKIPPED, Result.NOT_RUN)}),
    "another rule": (["claim-changed"], {"claim": OTHER_CLAIM}),
    "a changed function": (
        ["code-changed"],
        {"now": replace(BOUND, functions={**BOUND.functions, "a.py::f": "99"})},
    ),
    "a function that is gone": (
        ["code-changed"],
        {"now": replace(BOUND, functions={"t.py::test_one": "02"})},
    ),
    "a test that is new": (
        ["code-changed"],
        {"now": replace(BOUND, functions={**BOUND.functions, "t.py::test_two": "03"})},
    ),
    "a name that is bound no more": (
        ["code-changed"],
        {"now": replace(BOUND, unbound={**BOUND.unbound, "h": "not found"})},
    ),
    "nothing bound": (
        ["binds-nothing"],
        {"facts": replace(FACTS, bound=Bound()), "now": Bound()},
    ),
    "uncommitted sources": (["uncommitted-sources"], {"facts": sourced(uncommitted=("src/a.py",))}),
}


@pytest.mark.parametrize("why", BARS_PARTIAL)
def test_it_earns_nothing_for(why: str) -> None:
    expected, changes = BARS_PARTIAL[why]
    facts, claim, now = (
        changes.get("facts", FACTS),
        changes.get("claim", CLAIM),
        changes.get("now", BOUND),
    )
    assert codes(facts, claim=claim, now=now) == expected
    answer = earned(verification(facts), claim, bound_now=now, project="p")
    assert answer.rung == BLOCKER
    assert answer.bars(PARTIAL)


def only_controls() -> Facts:
    return replace(FACTS, tests=TESTS[2:])


BARE_CLAIM = replace(CLAIM, fields={"id": "F-1"})
BARS_FUNCTIONAL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "neither expected nor signed": (["unpinned"], {"state": "unpinned", "pinned_by": ()}),
    "no live test": (["no-live-test"], {"facts": replace(FACTS, tests=(TESTS[0], TESTS[2]))}),
    "no git checkout": (["no-commit"], {"facts": sourced(commit=None)}),
    "another lane": (["lane"], {"facts": replace(FACTS, lane=replace(LANE, name="rtx3090"))}),
    "the embedded runtime under another name": (
        ["embedded-runtime", "lane"],
        {"facts": replace(FACTS, lane=replace(LANE, subject=replace(LANE.subject, runtime="embedded")))},
    ),
    "a subject that was read from a recording": (
        ["recorded"],
        {"facts": replace(FACTS, lane=replace(LANE, subject=replace(LANE.subject, recorded=True)))},
    ),
    "an oracle that was read from a trace": (
        ["recorded"],
        {"facts": replace(FACTS, lane=replace(LANE, oracle=replace(LANE.oracle, recorded=True)))},
    ),
    "no discharge block": (
        ["lane"],
        {
            "claim": BARE_CLAIM,
            "facts": replace(FACTS, claim={"id": "F-1"}, claim_sha256=BARE_CLAIM.sha256),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", BARS_FUNCTIONAL)
def test_it_earns_partial_and_no_more_for(why: str) -> None:
    expected, changes = BARS_FUNCTIONAL[why]
    claim, facts = changes.pop("claim", CLAIM), changes.pop("facts", FACTS)
    answer = earned(verification(facts, **changes), claim, bound_now=BOUND, project="p")
    assert [one.code for one in answer.refusals] == expected
    assert answer.rung == PARTIAL
    assert answer.bars(PARTIAL) == ()


def test_the_embedded_default_never_earns_functional_and_says_every_word_that_is_unmet() -> None:
    facts = replace(FACTS, lane=LaneFacts(name="embedded"), tests=TESTS[:1])
    answer = earned(verification(facts), CLAIM, bound_now=BOUND, project="p")
    assert answer.rung == PARTIAL
    assert {one.code for one in answer.refusals} == {"embedded-runtime", "no-live-test", "lane"}
    said = [one.message for one in answer.refusals if one.code == "lane"]
    assert "lane is embedded, expected rtx4090" in said
    assert "subject.device is unknown, expected cuda" in said
    assert len(said) == 11


def test_no_test_of_the_prediction_earns_nothing_even_where_the_outcome_says_survived() -> None:
    assert codes(only_controls()) == ["no-prediction", "no-live-test"]


CONTROLS = {
    "controls/seeded/bisection.json": "localised",
    "controls/embedded-default/bisection.json": "consistent",
}


@pytest.mark.parametrize(
    ("kinds", "lacking"),
    [
        ({}, []),
        (CONTROLS, []),
        ({"bisection.json": "consistent", "controls/a/bisection.json": "several"}, []),
        ({"bisection.json": "localised", "controls/a/bisection.json": "consistent"}, []),
        ({"bisection.json": "consistent"}, ["accuses anything"]),
        ({"bisection.json": "consistent", "controls/a/bisection.json": "consistent"}, ["accuses anything"]),
        ({"bisection.json": "localised"}, ["is consistent"]),
        ({"bisection.json": "unmeasured"}, ["accuses anything", "is consistent"]),
    ],
)
def test_a_bisection_that_gives_one_answer_only_earns_nothing_without_a_control(
    kinds: dict[str, str], lacking: list[str]
) -> None:
    bare = replace(FACTS, tests=TESTS[:2])
    answer = earned(verification(bare, kinds=kinds), CLAIM, bound_now=BOUND, project="p")
    assert [one.code for one in answer.refusals] == ["no-control"] * len(lacking)
    assert answer.rung == (BLOCKER if lacking else FUNCTIONAL)
    for said, words in zip(answer.needs, lacking, strict=True):
        assert words in said
    assert codes(kinds=kinds) == [], "a test that is marked as a control shows what the bisections do not"


def test_the_contract_itself_and_the_evidence_are_no_sources() -> None:
    assert codes(sourced(uncommitted=("contracts/x.yaml", "evidence/F-1/bundle.json"))) == []
    assert codes(sourced(uncommitted=("contracts/y.yaml",))) == ["uncommitted-sources"]
    assert codes(sourced(uncommitted=("evidences/F-1",))) == ["uncommitted-sources"]


def test_of_a_bundle_that_does_not_verify_nothing_else_is_believed() -> None:
    problem = BundleProblem(code="changed-file", file="junit.xml", message="was changed")
    answer = earned(
        verification(replace(FACTS, falsifier="F-2"), problems=(problem,)), CLAIM, bound_now=BOUND
    )
    assert answer.needs == ("does-not-verify: junit.xml was changed",)
    assert answer.rung == BLOCKER
    assert earned(verification(None), CLAIM, bound_now=BOUND).rung == BLOCKER


def test_what_changed_is_said_by_name() -> None:
    answer = earned(
        verification(), OTHER_CLAIM, bound_now=Bound(functions={"t.py::test_one": "03", "b.py::g": "1"})
    )
    said = "\n".join(answer.needs)
    assert "the claim has changed since it was measured: rule" in said
    for words in ("a.py::f is gone", "b.py::g is new", "t.py::test_one differs", "lib:g is named no more"):
        assert words in said


# the words of discharge


@pytest.mark.parametrize(
    ("discharge", "unmet_words"),
    [
        (DISCHARGE, []),
        ({"subject": {"version": ">=0.72,<0.73"}}, []),
        ({"subject": {"version": "==0.72.*"}}, []),
        ({"subject": {"version": "0.72.3"}}, []),
        ({"subject": {"version": "0.72"}}, ["subject.version is 0.72.3, expected 0.72"]),
        ({"subject": {"version": ">=0.73"}}, ["subject.version is 0.72.3, expected >=0.73"]),
        ({"subject": {"version": ">= nine"}}, ["subject.version is 0.72.3, expected >= nine"]),
        ({"subject": {"dtype": "unknown"}}, ["subject.dtype is unknown, expected unknown"]),
        ({"subject": {"dtype": "q4_k"}}, ["subject.dtype is unknown, expected q4_k"]),
        ({"oracle": {"device": "cpu"}}, ["oracle.device is cuda, expected cpu"]),
        ({"oracle": {"dtype": "F16"}}, []),
        ({"subject_device": "cuda:1"}, ["subject.device is cuda:0, expected cuda:1"]),
        ({"subject": {"binary_sha256": "aa"}}, ["subject.binary_sha256 is unknown, expected aa"]),
        ({"gpu_driver": "550"}, ["gpu_driver is unknown, expected 550"]),
        ({"tokens": ["1", "2"]}, []),
        ({"layers": "0..2"}, ["layers is 0..1, expected 0..2"]),
        ({"layers": "1..1"}, ["layers is 0..1, expected 1..1"]),
        ({"layers": "all"}, ["layers is 0..1, expected all"]),
        ({"prompt": ""}, ["prompt is What is 2+2?, expected "]),
    ],
)
def test_each_word_of_discharge(discharge: dict[str, Any], unmet_words: list[str]) -> None:
    assert list(unmet(discharge, LANE)) == unmet_words


def test_a_folder_for_a_model_of_the_hub_is_refused_with_what_to_give() -> None:
    oracle = replace(LANE.oracle, model="/data/qwen", model_sha256="cd" * 32)
    lane = replace(LANE, oracle=oracle)
    (said,) = unmet({"model": "Qwen/Qwen2.5-Coder-7B-Instruct"}, lane)
    assert said.startswith("model is /data/qwen, expected Qwen/Qwen2.5-Coder-7B-Instruct. ")
    for words in ("--oracle-model=Qwen/Qwen2.5-Coder-7B-Instruct", "HF_HUB_OFFLINE=1"):
        assert words in said
    assert f"oracle.model_sha256: {'cd' * 32} " in said, "a word that the same lane satisfies"
    assert list(unmet({"oracle": {"model_sha256": "cd" * 32}}, lane)) == []


@pytest.mark.parametrize("version", ["unknown", "", "nightly", "apr"])
def test_a_version_that_is_none_satisfies_no_range(version: str) -> None:
    lane = replace(LANE, subject=Side(runtime="apr", version=version))
    assert list(unmet({"subject": {"version": ">=0"}}, lane))


def test_more_layers_than_are_asked_for_hold_those_that_are() -> None:
    lane = replace(LANE, layers=(0, 4))
    assert list(unmet({"layers": "0..1"}, lane)) == list(unmet({"layers": "3..4"}, lane)) == []
    assert list(unmet({"layers": "3..5"}, lane)) == ["layers is 0..4, expected 3..5"]


def test_a_release_candidate_of_a_later_version_is_in_the_range() -> None:
    lane = replace(LANE, subject=Side(runtime="apr", version="apr 0.73.0rc1 (abc)"))
    assert list(unmet({"subject": {"version": ">=0.72"}}, lane)) == []


# the state beside a status


VERIFIED = verification()


def state(claim: Claim = CLAIM, *, now: Bound = BOUND, found: Verification | None = VERIFIED) -> str:
    return state_of(found, claim, bound_now=now, project="p").state


def test_a_bundle_of_todays_claim_and_code_is_fresh() -> None:
    assert state() == FRESH
    assert state(replace(CLAIM, rung=FUNCTIONAL)) == FRESH


def test_a_changed_claim_or_function_makes_it_stale_and_nothing_worse() -> None:
    assert state(OTHER_CLAIM) == STALE
    assert state(now=Bound(functions={"a.py::f": "2"}, unbound=BOUND.unbound)) == STALE


REPLAYED = verification(problems=(BundleProblem(code="replay-differs", file="bisection.json", message="m"),))
ANOTHER_CODE = Bound(functions={"a.py::f": "2"}, unbound=BOUND.unbound)


def test_figures_that_todays_code_replays_otherwise_are_stale_where_the_code_changed() -> None:
    same_tool = replace(REPLAYED, facts=replace(FACTS, tool=TOOL))
    assert state(found=same_tool, now=ANOTHER_CODE) == STALE
    assert state(found=REPLAYED) == STALE  # another version of this package wrote it
    assert state(found=same_tool) == BROKEN
    assert state(replace(CLAIM, falsifier="F-2"), found=same_tool, now=ANOTHER_CODE) == BROKEN
    worse = (*REPLAYED.problems, BundleProblem(code="changed-file", file="junit.xml", message="was changed"))
    assert state(found=replace(same_tool, problems=worse), now=ANOTHER_CODE) == BROKEN


def test_a_contract_that_names_no_bundle_has_none() -> None:
    assert state(replace(CLAIM, pin=None)) == ABSENT


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        (CLAIM, None),
        (CLAIM, verification(problems=(BundleProblem(code="c", file="", message="m"),))),
        (replace(CLAIM, pin=Pin(bundle="evidence/F-1")), verification(state="unpinned")),
        (replace(CLAIM, falsifier="F-2"), verification()),
        (replace(CLAIM, rung=FUNCTIONAL), verification(replace(FACTS, lane=LaneFacts(name="embedded")))),
        (OTHER_CLAIM, verification(ended("t.py::test_one", Ended.FAILED, Result.FALSIFIED))),
    ],
    ids=["no-bundle", "changed", "no-digest", "another", "rung-too-high", "falsified"],
)
def test_a_bundle_that_does_not_carry_the_rung_is_broken(claim: Claim, found: Verification | None) -> None:
    assert state(claim, found=found) == BROKEN
