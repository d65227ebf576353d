"""From rows and findings to the headline, the exit code and JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from apr_falsify.compare.bisection import Bisection, Finding, FindingType, Kind, Verdict, finite, root_causes
from apr_falsify.compare.localise import kind_of
from apr_falsify.compare.published import published_rule
from apr_falsify.compare.rows import accused, cleared
from apr_falsify.model.stages import Key, Layout
from apr_falsify.pytest_plugin.verdict import printed
from apr_falsify.traces.provenance import Provenance
from tests.unit.compare.judged_by_hand import SOURCE, WEIGHTS, entry, finding, metrics, of, row

# --- the headline ------------------------

FINE = [row("attn_norm")]


@pytest.mark.parametrize(
    ("types", "kind", "code"),
    [
        ([], Kind.CONSISTENT, 0),
        ([SOURCE], Kind.LOCALISED, 1),
        ([WEIGHTS], Kind.LOCALISED, 1),
        ([SOURCE, WEIGHTS], Kind.SEVERAL, 1),
        ([SOURCE, SOURCE], Kind.SEVERAL, 1),
        ([SOURCE, FindingType.UNMEASURED, FindingType.LAYOUT], Kind.LOCALISED, 1),
        ([SOURCE, FindingType.REFERENCE], Kind.REFERENCE_SUSPECT, 4),
        ([FindingType.REFERENCE, FindingType.ARITHMETIC], Kind.REFERENCE_SUSPECT, 4),
        ([FindingType.LAYOUT], Kind.LAYOUT_MISMATCH, 1),
        ([FindingType.LAYOUT, FindingType.UNMEASURED], Kind.LAYOUT_MISMATCH, 1),
        ([FindingType.UNMEASURED], Kind.UNMEASURED, 4),
        ([FindingType.NOT_THE_SUBJECTS_WEIGHTS], Kind.UNMEASURED, 4),
        ([FindingType.ARITHMETIC], Kind.CONSISTENT, 1),
        ([FindingType.TOKENIZER], Kind.CONSISTENT, 1),
        ([FindingType.GEOMETRY, FindingType.UNMEASURED], Kind.UNMEASURED, 1),
    ],
)
def test_the_first_that_applies_is_the_headline(types: list[FindingType], kind: Kind, code: int) -> None:
    findings = tuple(finding(each) for each in types)
    assert kind_of(findings, FINE) is kind
    assert int(bisection(kind, findings).exit_code) == code


BASE, SILU, FACTOR = ("rope-base", "RoPE base 10000"), ("activation", "relu"), ("factor", "x 2")
Q, K, GATE, OUT = "q_post_rope", "k_post_rope", "ffn_gate", "attn_out"


@pytest.mark.parametrize(
    ("places", "kind", "groups"),
    [
        ([(0, Q, BASE), (0, K, BASE)], Kind.LOCALISED, [((0,), (Q, K))]),
        ([(n, name, BASE) for n in (0, 2) for name in (Q, K)], Kind.LOCALISED, [((0, 2), (Q, K))]),
        ([(0, GATE, FACTOR), (1, GATE, FACTOR)], Kind.LOCALISED, [((0, 1), (GATE,))]),
        ([(0, GATE, FACTOR), (0, OUT, FACTOR)], Kind.SEVERAL, [((0,), (GATE,)), ((0,), (OUT,))]),
        ([(0, Q, BASE), (0, K, ("rope-base", "RoPE base 1e6"))], Kind.SEVERAL, [((0,), (Q,)), ((0,), (K,))]),
        ([(0, Q, BASE), (0, K, None)], Kind.SEVERAL, [((0,), (Q,))]),
        ([(0, GATE, None), (1, GATE, None)], Kind.SEVERAL, []),
        ([(0, GATE, None)], Kind.LOCALISED, []),
        ([(None, "lm_head", FACTOR)], Kind.LOCALISED, [((None,), ("lm_head",))]),
        (
            [(0, "ffn_silu", SILU), (0, "ffn_swigl", SILU)],
            Kind.LOCALISED,
            [((0,), ("ffn_silu", "ffn_swigl"))],
        ),
    ],
)
def test_what_one_cause_explains_is_one_thing(
    places: list[tuple[int | None, str, tuple[str, str] | None]],
    kind: Kind,
    groups: list[tuple[tuple[int | None, ...], tuple[str, ...]]],
) -> None:
    sources = [finding(SOURCE, layer=layer, stages=(name,), cause=cause) for layer, name, cause in places]
    others = [finding(FindingType.ARITHMETIC, cause=("other", "another"))]
    assert kind_of((*sources, *others), FINE) is kind
    assert [(one.layers, one.stages) for one in root_causes((*sources, *others))] == groups


@pytest.mark.parametrize(
    ("layers", "where"),
    [(2, "in every layer"), (3, "in layers 0, 1"), (0, "in layers 0, 1")],
)
def test_one_cause_is_the_headline(layers: int, where: str) -> None:
    sources = tuple(
        finding(SOURCE, layer=layer, stages=(name,), cause=BASE) for layer in (0, 1) for name in (Q, K)
    )
    rows = tuple(row(name, Verdict.INTRODUCES, layer=layer) for layer in (0, 1) for name in (Q, K))
    text = printed(bisection(Kind.LOCALISED, sources, rows=rows, layers=layers)).split("source:")[0]
    assert " ".join(text.split()) == (
        f"localised: one cause: RoPE base 10000, {where}: {Q}, {K} (4 stages compared)"
    )


def test_a_stage_of_the_whole_model_is_not_told_as_a_layers() -> None:
    other = ("constant", "norm_eps 1e-05 instead of 1e-06")
    sources = (
        finding(WEIGHTS, layer=0, stages=("attn_norm", "ffn_norm"), cause=other),
        finding(WEIGHTS, layer=None, stages=("final_norm",), cause=other),
    )
    text = printed(bisection(Kind.LOCALISED, sources, rows=(row("attn_norm"),), layers=3)).split("source:")[0]
    assert " ".join(text.split()) == (
        "localised: one cause: norm_eps 1e-05 instead of 1e-06, in layer 0: attn_norm, ffn_norm; final_norm "
        "(1 stage compared)"
    )


@pytest.mark.parametrize(
    ("verdicts", "kind"),
    [
        ([], Kind.UNMEASURED),
        ([Verdict.UNMEASURED], Kind.UNMEASURED),
        ([Verdict.LAYOUT], Kind.UNMEASURED),
        ([Verdict.UNMEASURED, Verdict.WITHIN_FLOOR], Kind.CONSISTENT),
        ([Verdict.INHERITS], Kind.CONSISTENT),
    ],
)
def test_nothing_judged_is_never_a_pass(verdicts: list[Verdict], kind: Kind) -> None:
    assert kind_of((), [row("attn_norm", verdict) for verdict in verdicts]) is kind


def bisection(kind: Kind, findings: tuple[Finding, ...] = (), **more: Any) -> Bisection:
    made = {"rows": (), "published": (), "not_checked": (), "tokens": (5, 6), **more}
    sides = {"oracle": Provenance(runtime="hf"), "subject": Provenance(runtime="apr")}
    return Bisection(kind=kind, findings=findings, **made, **sides)


@pytest.mark.parametrize(
    ("kind", "complete"),
    [
        (each, each not in (FindingType.UNMEASURED, FindingType.NOT_THE_SUBJECTS_WEIGHTS))
        for each in FindingType
    ],
)
def test_what_could_not_be_measured_leaves_a_bisection_incomplete(kind: FindingType, complete: bool) -> None:
    assert bisection(Kind.LOCALISED, (finding(SOURCE), finding(kind))).complete is complete


def test_sources_and_other_weights_are_the_sources() -> None:
    findings = tuple(finding(kind) for kind in FindingType)
    assert [each.type for each in bisection(Kind.SEVERAL, findings).sources] == [SOURCE, WEIGHTS]


def test_its_json_is_that_of_the_schema() -> None:
    one = finding(
        SOURCE, layer=1, stages=("attn_out",), size=math.inf, advice="look", cause=("factor", "x 2")
    )
    rule = published_rule(1, {"attn_norm": 1.0, "attn_out": 0.5})
    compared = row(
        "attn_out",
        Verdict.INTRODUCES,
        layer=1,
        accumulated=metrics(0.5),
        introduced=metrics(0.25),
        arithmetic="q4_k x q8",
        residual=0.5,
        floor=math.nan,
        excess=math.inf,
        simulated=True,
        layout=(Layout.HEAD_MAJOR,),
        shape=(1, 4),
    )
    found = bisection(
        Kind.LOCALISED,
        (one, finding(FindingType.LAYOUT)),
        rows=(compared, row("lm_head", layer=None)),
        published=(rule,),
    ).to_json()
    found = json.loads(json.dumps(found, allow_nan=False))
    assert found["schema"] == "apr-falsify/bisection/v1"
    assert (found["kind"], found["complete"], found["tokens"]) == ("localised", True, [5, 6])
    assert found["findings"][0] == {
        "type": "source",
        "layer": 1,
        "stages": ["attn_out"],
        "size": None,
        "explanation": "",
        "try": "look",
        "cause": {"name": "factor", "says": "x 2"},
    }
    assert found["findings"][1]["cause"] is None
    assert found["sources"] == found["findings"][:1]
    assert found["published_rule"] == {**rule.to_json(), "layers": [rule.to_json()]}
    assert (found["oracle"]["runtime"], found["subject"]["runtime"]) == ("hf", "apr")
    first, last = found["stages"]
    assert first["accumulated"]["rel_l2"] == pytest.approx(0.5)
    assert first["introduced"]["norm_ratio"] == pytest.approx(1.25)
    assert {key: first[key] for key in ("layer", "stage", "status", "verdict", "shape", "layout")} == {
        "layer": 1,
        "stage": "attn_out",
        "status": "compared",
        "verdict": "introduces",
        "shape": [1, 4],
        "layout": ["head-major"],
    }
    assert (first["residual"], first["floor"], first["excess"]) == (0.5, None, None)
    assert (first["arithmetic"], first["floor_is_simulated"]) == ("q4_k x q8", True)
    assert first["nonfinite"] == {"oracle": 0, "subject": 0, "mismatch": 0}
    assert (last["layer"], last["accumulated"], last["introduced"], last["nonfinite"]) == (
        None,
        None,
        None,
        None,
    )


def test_without_a_published_rule_its_place_is_empty() -> None:
    found = bisection(Kind.CONSISTENT).to_json()["published_rule"]
    assert found == {"chain": [], "cosines": [], "crossings": [], "layers": []}


def test_json_has_no_number_that_is_not_finite() -> None:
    assert [finite(value) for value in (1.5, None, math.nan, math.inf, -math.inf, 0.0)] == [
        1.5,
        *[None] * 4,
        0.0,
    ]


# --- rows ------------------------


def test_only_what_is_shown_to_introduce_an_error_is_accused() -> None:
    rows = [row("attn_norm"), row("attn_out", Verdict.UNMEASURED), row("lm_head", layer=None)]
    found = accused(rows, [Key(0, "attn_out"), Key(None, "lm_head")])
    assert [each.verdict for each in found] == [Verdict.WITHIN_FLOOR, Verdict.INTRODUCES, Verdict.INTRODUCES]
    assert found[0] is rows[0]


def test_what_a_replay_alone_accuses_is_cleared_and_what_else_was_found_stays() -> None:
    rows = [row("attn_norm", Verdict.INTRODUCES), row("attn_out", Verdict.INTRODUCES), row("ffn_out")]
    found = cleared(rows, of(entry("attn_norm", 2.0), entry("attn_out", 0.5), entry("ffn_out", 2.0)))
    assert [each.verdict for each in found] == [Verdict.UNMEASURED, Verdict.INTRODUCES, Verdict.WITHIN_FLOOR]
