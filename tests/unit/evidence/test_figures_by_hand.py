"""How near a figure of a bundle must be to the one that is computed again, and which figures there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.evidence.figures import check_bisection
from apr_falsify.evidence.files import BUNDLE
from apr_falsify.model.stages import Key, Layout
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.evidence.bundles import measured_draft, scaled
from tests.unit.evidence.forging import Files, checked, codes, edited, files_of, forged, resealed

BISECTION = "bisection.json"


@pytest.fixture(scope="module")
def files() -> Files:
    """A bundle of a subject whose scores are half as large again."""
    return files_of(measured_draft(scaled("attn_scores", 1.5))[0])


def row(data: Any, stage: str = "attn_scores") -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in data["stages"] if row["stage"] == stage)
    return found


def by(name: str, factor: float, section: str = "accumulated") -> Callable[[Any], object]:
    def change(data: Any) -> None:
        place = row(data)[section] if section else row(data)
        place[name] *= factor

    return change


@pytest.mark.parametrize("name", ["rel_l2", "norm_ratio", "max_abs"])
def test_a_sum_may_differ_in_its_tenth_digit_and_no_earlier(files: Files, name: str) -> None:
    assert checked(forged(files, BISECTION, by(name, 1 + 5e-10))).holds
    assert checked(forged(files, BISECTION, by(name, 1 - 5e-10))).holds
    assert codes(checked(forged(files, BISECTION, by(name, 1 + 3e-9)))) == {"figure-differs"}


def test_a_figure_that_should_be_zero_may_be_next_to_nothing(files: Files) -> None:
    def set_to(value: float) -> Callable[[Any], object]:
        return lambda data: row(data, "attn_norm")["accumulated"].update(rel_l2=value)

    assert row(json.loads(files[BISECTION]), "attn_norm")["accumulated"]["rel_l2"] == 0.0
    assert checked(forged(files, BISECTION, set_to(0.9e-12))).holds
    assert not checked(forged(files, BISECTION, set_to(1.1e-12))).holds


@pytest.mark.parametrize(
    ("name", "section"),
    [("rel_l2", "introduced"), ("norm_ratio", "introduced"), ("residual", ""), ("excess", "")],
)
def test_a_figure_of_a_replay_may_differ_by_a_thousandth(files: Files, name: str, section: str) -> None:
    assert checked(forged(files, BISECTION, by(name, 1.0009, section))).holds
    assert codes(checked(forged(files, BISECTION, by(name, 1.0011, section)))) == {"replay-differs"}


def test_the_greatest_difference_may_be_named_at_another_place_that_is_as_far() -> None:
    """The first token weighs itself with 1 in every head: two heads that give 1/2 are both as far off."""

    def twice(trace: Trace) -> Trace:
        key = Key(0, "attn_softmax")
        data = np.array(trace.stages[key].data)
        data[[0, 2], 0, 0] = 0.5
        return replace(trace, stages={**trace.stages, key: replace(trace.stages[key], data=data)})

    def at(place: list[int]) -> Files:
        return forged(made, BISECTION, lambda data: row(data, "attn_softmax")["accumulated"].update(at=place))

    made = files_of(measured_draft(twice)[0])
    assert row(json.loads(made[BISECTION]), "attn_softmax")["accumulated"]["at"] == [0, 0, 0]
    assert checked(at([2, 0, 0])).holds
    for wrong in ([1, 0, 0], [2, 0], [2, 0, 0, 0], [4, 0, 0], [-2, 0, 0], [2, 0, 2], [2, 2, 0]):
        assert codes(checked(at(wrong))) == {"figure-differs"}, wrong


def test_a_figure_that_is_left_out_is_named(files: Files) -> None:
    found = checked(forged(files, BISECTION, lambda data: row(data)["accumulated"].pop("max_abs")))
    assert codes(found) == {"figure-differs"}
    assert any("max_abs" in problem.message for problem in found.problems)
    found = checked(forged(files, BISECTION, lambda data: row(data)["accumulated"].pop("at")))
    assert not found.holds


def test_figures_without_traces_are_attested_each_by_name(files: Files) -> None:
    data = json.loads(files[BISECTION])
    count = check_bisection(data, BISECTION, None)
    assert count.problems == []
    assert f"{BISECTION}: layer 0 attn_scores accumulated, nonfinite" in count.attested
    assert f"{BISECTION}: layer 0 attn_scores introduced, residual, floor" in count.attested
    assert f"{BISECTION}: verdicts and findings" in count.attested
    assert {f"{BISECTION}: {name}" for name in ("kind", "complete", "sources", "published_rule")} <= set(
        count.recomputed
    )


def test_a_whole_model_stage_is_named_without_a_layer() -> None:
    names = ("attn_norm", "final_norm")
    draft, _ = measured_draft(stages=names)
    data = json.loads(json.dumps(draft.bisection))
    data["stages"].append({**data["stages"][0], "layer": None, "stage": "final_norm"})
    count = check_bisection(data, BISECTION, None)
    assert f"{BISECTION}: final_norm accumulated, nonfinite" in count.attested
    assert f"{BISECTION}: layer 0 attn_norm accumulated, nonfinite" in count.attested


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema="x/v9"), "its schema is 'x/v9'"),
        (lambda data: data.pop("findings"), "unusable value"),
        (lambda data: row(data).update(layer="0"), "unusable value"),
        (lambda data: row(data).update(layer=True), "unusable value"),
        (lambda data: row(data).pop("accumulated"), "unusable value"),
        (lambda data: row(data).update(status="seen"), "unusable value"),
        (lambda data: data.update(complete="yes"), "unusable value"),
    ],
)
def test_a_bisection_that_is_none_is_told_and_is_no_exception(
    files: Files, change: Callable[[Any], object], words: str
) -> None:
    data = json.loads(files[BISECTION])
    change(data)
    count = check_bisection(data, BISECTION, None)
    assert any(words in problem.message for problem in count.problems)
    assert check_bisection([], BISECTION, None).problems[0].code == "bad-bisection"


def test_a_stage_that_a_side_does_not_have_cannot_be_compared(files: Files) -> None:
    def other(data: Any) -> None:
        data["stages"].append({**row(data), "stage": "ffn_out"})

    found = checked(forged(files, BISECTION, other))
    assert any(
        "layer 0 ffn_out is compared, and a side has no such stage" in one.message for one in found.problems
    )


def test_layers_that_were_not_compared_may_be_held_by_both_sides() -> None:
    draft, found = measured_draft()
    assert draft.oracle is not None
    assert draft.subject is not None
    more = {Key(1, "attn_norm"): draft.oracle.stages[0, "attn_norm"]}
    both = [replace(side, stages={**side.stages, **more}) for side in (draft.oracle, draft.subject)]
    files = files_of(replace(draft, oracle=both[0], subject=both[1]))
    assert found.kind == "consistent"
    assert checked(files).holds


def test_only_a_layout_finding_turns_the_subjects_stages() -> None:
    """A source whose words happen to begin as a convention's name changes no layout."""

    def head_major(trace: Trace) -> Trace:
        key = Key(0, "q_post_rope")
        data = np.array(trace.stages[key].data)
        data = data.reshape(len(data), 4, -1).swapaxes(0, 1).reshape(len(data), -1)
        return replace(trace, stages={**trace.stages, key: StageArray(data=data)})

    draft, found = measured_draft(head_major)
    assert [finding.type.value for finding in found.findings] == ["layout"]
    made = files_of(draft)
    assert checked(made).holds

    def as_arithmetic(data: Any) -> None:
        data["findings"][0]["type"] = "arithmetic"
        data.update(kind="consistent")

    assert not checked(forged(made, BISECTION, as_arithmetic)).holds
    assert Layout.HEAD_MAJOR.value in json.dumps(json.loads(made[BISECTION])["stages"])


def test_tokens_of_either_side_are_those_of_the_lane(files: Files) -> None:
    for side in ("oracle", "subject"):
        told = edited(files, f"{side}/trace.json", lambda data: data.update(tokens=[1, 3]))
        found = checked(resealed(told))
        assert codes(found) == {"lane-differs"}
        assert any(f"{side}/trace.json says [1, 3]" in one.message for one in found.problems)


def test_a_lane_of_which_a_trace_is_there_must_name_the_side(files: Files) -> None:
    found = checked(forged(files, BUNDLE, lambda data: data["lane"].update(oracle=None)))
    assert codes(found) == {"lane-differs"}
    assert any("names no oracle, and oracle/trace.json is there" in one.message for one in found.problems)


@pytest.mark.parametrize("name", ["runtime", "version", "device", "dtype", "model_sha256", "binary_sha256"])
def test_each_word_of_the_lane_is_that_of_the_trace(files: Files, name: str) -> None:
    value = "ab" * 32 if name.endswith("sha256") else "other"
    found = checked(forged(files, BUNDLE, lambda data: data["lane"]["subject"].update({name: value})))
    assert codes(found) == {"lane-differs"}
    assert any(f"says of the subject {name} {value!r}, its trace" in one.message for one in found.problems)


def test_stage_files_without_their_trace_are_missed(files: Files) -> None:
    without = {name: data for name, data in files.items() if name not in (BISECTION, "subject/trace.json")}
    found = checked(resealed(without))
    assert [(one.code, one.file) for one in found.problems] == [("missing-file", "subject/trace.json")]


def test_a_bundle_of_one_trace_alone_and_no_bisection_has_nothing_to_compare(files: Files) -> None:
    alone = {
        name: data for name, data in files.items() if name != BISECTION and not name.startswith("subject/")
    }
    found = checked(resealed(alone))
    assert found.holds
    assert "device and lane: what the capturing machine reported" in found.attested


def test_what_needs_weights_is_said_to_be_unchecked_without_them(files: Files) -> None:
    assert "what needs weights to be replayed: give them with --weights MODEL" in checked(files).not_checked


def test_a_trace_that_lists_what_is_not_there_or_holds_what_it_does_not_list_is_told(files: Files) -> None:
    name = "oracle/layer-0/attn_norm.bin"
    found = checked(resealed({key: data for key, data in files.items() if key != name}))
    assert any(one.file == name and "is not in the bundle" in one.message for one in found.problems)
    extra = checked(resealed({**files, "oracle/layer-1/attn_norm.bin": files[name]}))
    assert any("is not in oracle/trace.json" in one.message for one in extra.problems)
