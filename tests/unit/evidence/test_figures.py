"""Every figure of a bisection that follows from the files is computed again; a forged one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.published import published_rule
from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.bundle import Draft, bundle_files, read_bundle, write_bundle
from apr_falsify.evidence.facts import LaneFacts
from apr_falsify.evidence.verify import verify
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import Layout
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.traces.trace import Trace
from tests.unit.evidence.bundles import facts_of, lane_of, measured_draft, scaled, small_traces
from tests.unit.evidence.forging import Files, checked, codes, edited, files_of, forged, resealed
from tests.unit.helpers import TINY, small_model

BISECTION = "bisection.json"


@pytest.fixture(scope="module")
def files() -> Files:
    """A bundle of a subject whose scores are half as large again."""
    return files_of(measured_draft(scaled("attn_scores", 1.5))[0])


def rows(data: Any) -> dict[str, Any]:
    return {row["stage"]: row for row in data["stages"]}


FIGURES = ("cosine", "rel_l2", "norm_ratio", "max_abs")
FORGED: dict[str, Callable[[Any], object]] = {
    **{
        f"accumulated {name}": lambda data, name=name: rows(data)["attn_scores"]["accumulated"].update(
            {name: 0.75}
        )
        for name in FIGURES
    },
    "accumulated by a millionth": lambda data: rows(data)["attn_scores"]["accumulated"].update(
        rel_l2=rows(data)["attn_scores"]["accumulated"]["rel_l2"] * (1 + 1e-6)
    ),
    "accumulated is null": lambda data: rows(data)["attn_scores"]["accumulated"].update(cosine=None),
    "accumulated is true": lambda data: rows(data)["attn_norm"]["accumulated"].update(cosine=True),
    "accumulated is text": lambda data: rows(data)["attn_scores"]["accumulated"].update(cosine="0.9"),
    "where it is greatest": lambda data: rows(data)["attn_scores"]["accumulated"].update(at=[0, 0, 0]),
    "where, outside": lambda data: rows(data)["attn_scores"]["accumulated"].update(at=[99, 0, 0]),
    "nonfinite": lambda data: rows(data)["attn_scores"]["nonfinite"].update(subject=1),
    "shape": lambda data: rows(data)["attn_scores"].update(shape=[1, 2, 3]),
    "layout": lambda data: rows(data)["attn_scores"].update(layout=["transposed"]),
    "introduced": lambda data: rows(data)["attn_scores"]["introduced"].update(rel_l2=1e-9),
    "residual": lambda data: rows(data)["attn_scores"].update(residual=1e-9),
    "floor": lambda data: rows(data)["attn_scores"].update(floor=1.0),
    "kind": lambda data: data.update(kind="consistent"),
    "complete": lambda data: data.update(complete=not data["complete"]),
    "sources": lambda data: data.update(sources=[]),
    "a finding left out": lambda data: data.update(findings=data["findings"][1:]),
    "cosines of the published rule": lambda data: data["published_rule"]["cosines"].__setitem__(0, 0.5),
    "crossings of the published rule": lambda data: data["published_rule"].update(crossings=[["a", "b"]]),
    "tokens": lambda data: data.update(tokens=[1, 2]),
    "provenance": lambda data: data["subject"].update(device="cuda"),
    "a stage that is not there": lambda data: rows(data)["attn_norm"].update(stage="lm_head"),
    "an unknown stage": lambda data: rows(data)["attn_norm"].update(stage="attn_nrom"),
    "an unknown verdict": lambda data: rows(data)["attn_norm"].update(verdict="fine"),
    "a newer schema": lambda data: data.update(schema="apr-falsify/bisection/v2"),
    "no stages": lambda data: data.pop("stages"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=list(FORGED))
def test_a_forged_figure_fails_though_every_digest_fits(
    files: Files, change: Callable[[Any], object]
) -> None:
    found = checked(forged(files, BISECTION, change))
    assert codes(found) <= {"figure-differs", "replay-differs", "bad-bisection", "newer-version"}
    assert {problem.file for problem in found.problems} == {BISECTION}


def test_a_bundle_of_a_version_that_knew_less_of_a_run_still_verifies(files: Files) -> None:
    older = dict(files)
    for name, at in ((BISECTION, "subject"), ("subject/trace.json", "provenance")):
        older = edited(older, name, lambda data, at=at: data[at].pop("unused"))
    assert checked(resealed(older)).holds


def told_again(data: Any) -> None:
    """Make the published rule fit the rows that are left."""
    cosines = {name: (row["accumulated"] or {}).get("cosine") for name, row in rows(data).items()}
    rule = published_rule(0, cosines).to_json()
    data["published_rule"] = {**rule, "layers": [rule]}


LEFT_OUT: dict[str, Callable[[Any], object]] = {
    "without a row": lambda data: data.update(
        stages=[row for row in data["stages"] if row["stage"] != "attn_out"]
    ),
    "with an empty row": lambda data: rows(data)["attn_out"].update(
        accumulated=None, introduced=None, residual=None, floor=None, verdict="within-floor"
    ),
}


@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=list(LEFT_OUT))
def test_a_stage_that_both_sides_hold_cannot_be_left_out(
    tiny: tuple[Files, Draft], change: Callable[[Any], object]
) -> None:
    found = checked(forged(tiny[0], BISECTION, lambda data: (change(data), told_again(data))))
    assert [one.message for one in found.problems] == [
        "stages lack attn_out of layer 0, which both sides hold"
    ]


@pytest.mark.parametrize(("name", "value"), [("layers", [0, 32]), ("prompt", "What is 2+2?")])
def test_prompt_and_layers_of_the_lane_are_those_of_the_subjects_trace(
    files: Files, name: str, value: object
) -> None:
    ran = {"layers": [0, 1], "prompt": "Hi"}
    told = edited(files, "subject/trace.json", lambda data: data["provenance"].update(ran))
    told = edited(told, BISECTION, lambda data: data["subject"].update(ran))
    told = edited(told, "bundle.json", lambda data: data["lane"].update(ran))
    assert checked(resealed(told)).holds
    found = checked(forged(told, "bundle.json", lambda data: data["lane"].update({name: value})))
    assert codes(found) == {"lane-differs"}


def test_the_figures_that_need_weights_are_attested_and_all_others_recomputed(files: Files) -> None:
    found = checked(files)
    attested = [one for one in found.attested if one.startswith(BISECTION)]
    assert attested == [
        f"{BISECTION}: layer 0 attn_norm introduced, residual, floor",
        f"{BISECTION}: layer 0 qkv_matmul introduced, residual, floor",
        f"{BISECTION}: verdicts and findings",
    ]
    assert f"{BISECTION}: layer 0 attn_scores introduced, residual, floor" in found.recomputed
    assert sum("accumulated" in one for one in found.recomputed) == 6
    assert any("--weights" in one for one in found.not_checked)


@pytest.fixture(scope="module")
def tiny() -> tuple[Files, Draft]:
    """A bundle of runs of the checkpoint that the package carries, the subject's scores spoilt."""
    from apr_falsify.model.stages import ATTENTION_CHAIN
    from apr_falsify.subjects.embedded import capture
    from apr_falsify.traces.capture import MemorySink, Request

    model = open_model(TINY)
    request = Request(tokens=(274, 272, 332), layers=range(1), stages=ATTENTION_CHAIN)
    oracle, subject = (capture(model, request, MemorySink()) for _ in range(2))
    subject = scaled("qkv_bias", 1.01)(subject)
    found = bisect(oracle, subject, weights=model.weights, subject_weights=model.weights)
    facts = facts_of(lane=replace(lane_of(oracle, subject), tokens=request.tokens))
    draft = Draft(facts=facts, bisection=found.to_json(), oracle=oracle, subject=subject)
    return files_of(draft), draft


def test_with_the_weights_every_figure_is_recomputed(tiny: tuple[Files, Draft]) -> None:
    found = checked(tiny[0], weights=open_model(TINY))
    assert found.problems == ()
    assert found.attested == ("device and lane: what the capturing machine reported",)
    assert f"{BISECTION}: findings" in found.recomputed


NEED_WEIGHTS: dict[str, Callable[[Any], object]] = {
    "introduced": lambda data: rows(data)["qkv_bias"]["introduced"].update(rel_l2=1e-9),
    "residual": lambda data: rows(data)["attn_out"].update(residual=0.5),
    "a residual beyond every float": lambda data: rows(data)["attn_out"].update(residual=10**400),
    "verdict": lambda data: rows(data)["attn_norm"].update(verdict="inherits"),
    "a finding's stage": lambda data: [
        data[place][0].update(stages=["attn_out"]) for place in ("findings", "sources", "causes")
    ],
}


@pytest.mark.parametrize("change", NEED_WEIGHTS.values(), ids=list(NEED_WEIGHTS))
def test_a_forged_figure_that_needs_weights_shows_with_them(
    tiny: tuple[Files, Draft], change: Callable[[Any], object]
) -> None:
    other = forged(tiny[0], BISECTION, change)
    assert checked(other).holds
    assert codes(checked(other, weights=open_model(TINY))) == {"replay-differs"}


def test_other_weights_than_the_traces_ran_are_refused(files: Files) -> None:
    assert codes(checked(files, weights=open_model(TINY))) == {"other-weights"}


def test_above_the_limit_only_digests_are_kept_and_figures_attested(tiny: tuple[Files, Draft]) -> None:
    whole, draft = tiny
    size = sum(map(len, whole.values()))
    small = files_of(draft, limit=size - 1)
    assert [name for name in small if name.endswith(".bin")] == []
    found = checked(small, weights=open_model(TINY))
    assert found.holds
    assert [one for one in found.recomputed if "accumulated" in one] == []
    assert any("digests alone" in one for one in found.not_checked)
    traces = [json.loads(files["oracle/trace.json"])["stages"] for files in (whole, small)]
    assert traces[0] == traces[1]


def test_what_is_too_large_even_without_stages_is_refused(tiny: tuple[Files, Draft]) -> None:
    with pytest.raises(EvidenceError, match=r"bisection\.json"):
        bundle_files(tiny[1], limit=1000, report=False)


def test_a_stage_file_left_out_shows_though_the_statement_fits(files: Files) -> None:
    rest = {name: data for name, data in files.items() if name != "oracle/layer-0/attn_norm.bin"}
    assert codes(checked(resealed(rest))) == {"bad-trace"}


def test_all_stage_files_of_one_side_left_out_show(files: Files) -> None:
    rest = {name: data for name, data in files.items() if not name.startswith("oracle/layer")}
    assert codes(checked(resealed(rest))) == {"missing-file"}


LANES: dict[str, Callable[[Any], object]] = {
    "device": lambda data: data["lane"]["subject"].update(device="cuda"),
    "runtime": lambda data: data["lane"]["subject"].update(runtime="apr"),
    "model": lambda data: data["lane"]["oracle"].update(model_sha256="0" * 64),
    "tokens": lambda data: data["lane"].update(tokens=[1]),
    "no subject": lambda data: data["lane"].update(subject=None),
}


@pytest.mark.parametrize("change", LANES.values(), ids=list(LANES))
def test_a_lane_that_its_traces_do_not_come_from_fails(files: Files, change: Callable[[Any], object]) -> None:
    assert codes(checked(forged(files, "bundle.json", change))) == {"lane-differs"}


def test_a_trace_of_another_layer_in_its_place_fails(files: Files) -> None:
    data = bytearray(files["oracle/layer-0/attn_norm.bin"])
    data[4] = 1
    other = {**files, "oracle/layer-0/attn_norm.bin": bytes(data)}
    assert codes(checked(resealed(other))) == {"bad-trace"}


def transposed(trace: Trace) -> Trace:
    """Return a trace whose scores are stored transposed, without a word of it."""
    stages = dict(trace.stages)
    scores = stages[0, "attn_scores"].data
    stages[0, "attn_scores"] = replace(
        stages[0, "attn_scores"], data=np.ascontiguousarray(np.swapaxes(scores, -1, -2))
    )
    return replace(trace, stages=stages)


def test_figures_in_a_layout_that_was_found_are_recomputed_in_it() -> None:
    oracle, subject = small_traces(transposed)
    found = bisect(oracle, subject, weights=small_model().weights)
    assert Layout.TRANSPOSED in {word for row in found.rows for word in row.layout}
    facts = facts_of(lane=lane_of(oracle, subject))
    files = files_of(Draft(facts=facts, bisection=found.to_json(), oracle=oracle, subject=subject))
    assert f"{BISECTION}: layer 0 attn_scores accumulated" in checked(files).recomputed


def with_scale_in_q(trace: Trace) -> Trace:
    """Return a trace whose q holds the scale of the scores, and zeros above the diagonal of these."""
    stages = dict(trace.stages)
    scale = np.float32(trace.geometry.attn_scale_at(0))
    for name, data in (
        ("q_post_rope", stages[0, "q_post_rope"].data * scale),
        ("attn_scores", np.tril(stages[0, "attn_scores"].data)),
    ):
        stages[0, name] = replace(stages[0, name], data=data)
    return replace(trace, stages=stages)


def in_16_bits(trace: Trace) -> Trace:
    """Return a trace of another runtime whose stages are rounded to bf16, which nobody says."""
    stages = {
        key: replace(array, data=FORMATS["bf16"].round(np.array(array.data)))
        for key, array in trace.stages.items()
    }
    said = replace(trace.provenance, runtime="port", arithmetic="unknown")
    return replace(trace, stages=stages, provenance=said)


@pytest.mark.parametrize(
    ("change", "told"),
    [(with_scale_in_q, "q holds the scale"), (in_16_bits, "the stages were saved in bf16")],
)
def test_figures_of_what_a_run_holds_otherwise_are_recomputed_so(
    change: Callable[[Trace], Trace], told: str
) -> None:
    oracle, subject = small_traces(change)
    found = bisect(oracle, subject, weights=small_model().weights)
    assert found.kind is Kind.CONSISTENT
    assert any(finding.explanation.startswith(told) for finding in found.findings)
    facts = facts_of(lane=lane_of(oracle, subject))
    files = files_of(Draft(facts=facts, bisection=found.to_json(), oracle=oracle, subject=subject))
    result = checked(files)
    assert not result.problems
    assert f"{BISECTION}: layer 0 q_post_rope accumulated" in result.recomputed


def test_nan_and_infinity_are_counted_again() -> None:
    def spoil(trace: Trace) -> Trace:
        stages = dict(trace.stages)
        data = stages[0, "attn_scores"].data.copy()
        data.reshape(-1)[:2] = np.nan, np.inf
        stages[0, "attn_scores"] = replace(stages[0, "attn_scores"], data=data)
        return replace(trace, stages=stages)

    files = files_of(measured_draft(spoil)[0])
    assert rows(json.loads(files[BISECTION]))["attn_scores"]["nonfinite"]["subject"] == 2
    assert checked(files).holds


def test_a_control_that_was_handed_over_is_checked_for_itself(files: Files) -> None:
    draft, found = measured_draft()
    files = files_of(replace(draft, controls={"scale-2": found.to_json()}))
    assert checked(files).holds
    name = "controls/scale-2/bisection.json"
    assert f"{name}: kind" in checked(files).recomputed
    assert any(one.startswith(f"{name}: layer 0 attn_norm accumulated") for one in checked(files).attested)
    assert codes(checked(forged(files, name, lambda data: data.update(kind="several")))) == {"figure-differs"}


def test_a_draft_that_contradicts_itself_is_never_written(tmp_path: Path) -> None:
    draft, _ = measured_draft()
    lying = {
        "claim": replace(draft, facts=replace(draft.facts, claim_sha256="0" * 64)),
        "lane": replace(draft, facts=replace(draft.facts, lane=LaneFacts(name="rtx4090"))),
        "figures": replace(draft, bisection={**(draft.bisection or {}), "kind": "several"}),
        "junit": replace(draft, junit="<testsuites/>"),
        "nan": replace(draft, bisection={**(draft.bisection or {}), "extra": float("nan")}),
        "control": replace(draft, controls={"../outside": draft.bisection or {}}),
    }
    for name, one in lying.items():
        with pytest.raises(EvidenceError):
            write_bundle(one, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    draft, found = measured_draft()
    digest = write_bundle(draft, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.facts == draft.facts
    assert bundle.statement_sha256 == digest == verify(tmp_path / "bundle").statement_sha256
    assert bundle.bisection == json.loads(json.dumps(found.to_json()))
    assert bundle.traces is not None
    for ours, theirs in zip(bundle.traces, (draft.oracle, draft.subject), strict=True):
        assert theirs is not None
        assert ours.provenance == theirs.provenance
        for key, array in theirs.stages.items():
            np.testing.assert_array_equal(ours.stages[key].data, array.data)
