"""The page of a bisection: what it says, that it says all of it, and that nothing from outside gets loose."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apr_falsify.commands.report import print_text
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.report import bisection_html
from apr_falsify.model.stages import Key
from tests.unit.evidence.pages import CASES, Page, changed, hostile, made, right, tiny, without
from tests.unit.helpers import run_script

SAID = {
    "consistent": ("consistent", "No stage introduces an error: 18 stages are what their inputs make them"),
    "tokenizer": ("consistent", "But the two sides' tokenizers give other tokens for the prompt."),
    "localised": (
        "localised",
        "Layer 0's qkv_bias is wrong: “the bias of k missing” explains all of its error. Everything before "
        "it is right; of the 50 stages after it 49 inherit it, and none adds an error of its own.",
    ),
    "several": (
        "several sources",
        "4 stages are wrong, each by itself: attn_scores, attn_softmax, ffn_gate and ffn_silu of layer 0.",
    ),
    "layout-mismatch": (
        "layout mismatch",
        "Nothing is computed wrongly, but q_post_rope and k_post_rope are not stored as the runtime declares",
    ),
    "reference-suspect": ("reference suspect", "The subject cannot be judged: the reference itself"),
    "one-token": (
        "unmeasured",
        "No stage in error was found, but this is no all-clear: q_post_rope, k_post_rope, attn_scores and "
        "attn_softmax could not be judged",
    ),
    "nan": ("several sources", "2 stages are wrong, each by itself: ffn_up and ffn_swigl of layer 0."),
    "missing": ("consistent", "No stage introduces an error: 16 stages are what their inputs make them"),
}


def page_of(name: str, **options: Any) -> Page:
    found = made(name)
    return Page(bisection_html(found.bisection, found.traces, **{"weights": tiny().weights, **options}))


@pytest.mark.parametrize("name", CASES)
def test_the_first_heading_is_the_verdict_in_a_sentence(name: str) -> None:
    badge, sentence = SAID[name]
    (first,) = page_of(name)["h1"]
    assert first.startswith(f"{badge} ")
    assert sentence in first
    assert first.endswith(".")


def test_a_page_is_the_same_for_the_same_input() -> None:
    found = made("localised")
    assert bisection_html(found.bisection, found.traces) == bisection_html(found.bisection, found.traces)


def test_what_was_not_checked_is_told_after_the_verdict_and_in_full_below() -> None:
    page = page_of("missing")
    assert any(said.startswith("Not checked: what was not requested: final_norm") for said in page["p"])
    assert "attn_scores of layer 0: missing in the subject." in page["li"]
    assert "ffn_silu of layer 0: missing in the subject." in page["li"]


def test_every_row_of_the_terminal_output_is_in_the_tables_with_its_figures() -> None:
    found = made("localised")
    result = bisect(found.oracle, found.subject, weights=tiny().weights)
    out = io.StringIO()
    print_text(result, Console(file=out, width=200))
    html = bisection_html(found.bisection, found.traces)
    rows = re.findall(r'<th scope="row">([!~=?x]?) (\w+)<td>', html)
    printed = re.findall(r"^([ !~=?])(\w+) +(-?\d\.\d{6}) ", out.getvalue(), re.M)
    assert len(printed) == 54
    assert [(mark.strip(), name) for mark, name, _ in printed] == rows
    assert [cosine for *_, cosine in printed] == re.findall(r"<td>\w+<td>(-?\d\.\d{6})", html)


def test_findings_are_told_with_what_to_try() -> None:
    page = page_of("localised")
    assert "Source: qkv_bias, layer 0" in page["h3"]
    assert "Try: look at the code and the weights of layer 0 qkv_bias." in page["p"]


def test_a_source_without_a_named_cause_is_told_as_such() -> None:
    rng = np.random.default_rng(7)
    spoil = lambda x: x + rng.normal(size=x.shape).astype(np.float32)  # noqa: E731 - used once
    bisection = bisect(right(), changed(right(), Key(0, "post_ffn_residual"), spoil), weights=tiny().weights)
    (first,) = Page(bisection_html(bisection.to_json()))["h1"]
    assert "Layer 0's post_ffn_residual is wrong: it is not what its inputs make it." in first
    assert "Everything before it is right." in first


def test_a_wrong_weight_is_told_and_what_follows_inherits() -> None:
    found = copy.deepcopy(made("localised").bisection)
    (source,) = found["sources"]
    weight = {**source, "type": "weights", "cause": None}
    found.update(sources=[weight], findings=[weight])
    for row in found["stages"]:
        row["verdict"] = "within-floor"
        row["excess"] = 0.5
    page = Page(bisection_html(found))
    assert "Layer 0's qkv_bias is wrong: the subject's weight is not the reference's." in page["h1"][0]
    assert "of the 50 stages after it 49 inherit it" in page["h1"][0]
    assert any("computed rightly, from a wrong weight: layer 0 qkv_bias" in each for each in page["desc"])


HOSTILE = (
    "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "\" onload='alert(1)' x=\"",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)",
    "\u202egnp.exe \ud800 \x00 \x1b[31m \u2028",
    "]]><!-- -->&lt;b&gt;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_only_ever_text(text: str) -> None:
    html = bisection_html(hostile(made("localised").bisection, text), command=text)
    plain = Page(bisection_html(made("localised").bisection, command="plain"))
    page = Page(html)
    assert set(page.tags) == set(plain.tags)
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in plain.attributes}
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "src"))
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x1b\u2028\u202e]", html)
    if text.isprintable():
        assert text in page["pre"][-1]


@pytest.mark.parametrize("name", CASES)
def test_a_page_names_nothing_to_load(name: str) -> None:
    found = made(name)
    html = bisection_html(found.bisection, found.traces, weights=tiny().weights)
    assert not re.search(r"https?:|url\(|@import|<link|<script|src=|srcset", html)
    assert "default-src 'none'" in html
    assert len(html.encode()) < 120_000


@pytest.mark.parametrize("name", CASES)
def test_every_picture_has_a_name_every_table_a_caption_and_every_cell_a_head(name: str) -> None:
    found = made(name)
    html = bisection_html(found.bisection, found.traces, weights=tiny().weights)
    for picture in re.findall(r'<svg class="area".*?</svg>', html, re.S):
        (named,) = re.findall(r'aria-labelledby="(\w+) (\w+)"', picture)
        assert re.findall(r'<(title|desc) id="(\w+)">', picture) == [("title", named[0]), ("desc", named[1])]
    identities = re.findall(r' id="(\w+)"', html)
    assert len(identities) == len(set(identities))
    assert html.count("<table") == html.count("<caption>") == html.count("<thead>")
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", html))


def test_without_traces_a_page_has_no_map_and_says_why() -> None:
    page = Page(bisection_html(made("localised").bisection))
    assert any(said.startswith("No map:") for said in page["p"])
    assert "Inside the stage that is wrong" in page["h2"]


def test_the_commands_that_make_it_again_are_quoted() -> None:
    page = page_of("localised", command="apr-falsify bisect --oracle 'a b'")
    assert page["pre"][-1] == "apr-falsify bisect --oracle 'a b'"


def test_values_that_are_not_finite_are_counted() -> None:
    found = made("nan")
    html = bisection_html(found.bisection, found.traces, weights=tiny().weights)
    assert "not finite: reference 0, subject 1" in html


SPOILED: dict[str, Any] = {
    "another schema": {"schema": "apr-falsify/bisection/v2"},
    "an unknown kind": {"kind": "fine"},
    "rows that are none": {"stages": {"layer": 0}},
    "no published rule": {"published_rule": None},
    "a cosine that is text": {
        "published_rule": {"layers": [{"layer": 0, "chain": ["a"], "cosines": ["1"], "crossings": []}]}
    },
    "a crossing of one": {
        "published_rule": {"layers": [{"layer": 0, "chain": ["a"], "cosines": [1], "crossings": [["a"]]}]}
    },
    "tokens that are none": {"tokens": [1.5]},
    "an oracle without a runtime": {"oracle": {}},
    "an infinite size": {"findings": [{"type": "source", "size": float("inf"), "stages": []}]},
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=list(SPOILED))
def test_a_bisection_that_cannot_be_read_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=r"bisection\.json: holds an unusable value"):
        bisection_html({**made("consistent").bisection, **change})


def test_any_key_of_a_bisection_may_be_missing_and_none_makes_a_crash() -> None:
    whole = made("localised").bisection
    kept = 0
    for target in (whole, whole["stages"][3], whole["findings"][0], whole["published_rule"]):
        for key in list(target):
            value = target.pop(key)
            with contextlib.suppress(EvidenceError):
                kept += len(bisection_html(whole)) > 0
            target[key] = value
    assert kept > 10


def test_a_stage_that_no_table_knows_and_an_index_out_of_range_are_shown_as_they_are() -> None:
    found = copy.deepcopy(made("consistent").bisection)
    found["stages"][2]["stage"] = "someday"
    found["stages"][5]["accumulated"].update(at=[10**9, 10**9, 1], max_abs=1.0)
    found["stages"][3]["accumulated"].update(at=[0, 10**9], max_abs=1.0)
    html = bisection_html(found, made("consistent").traces)
    assert "[1000000000, 1000000000, 1]" in html
    assert "[0, 1000000000]" in html


def test_nothing_to_show_is_a_page_all_the_same() -> None:
    found = {**made("consistent").bisection, "stages": [], "kind": "unmeasured"}
    page = Page(bisection_html(found))
    assert "this is no all-clear: nothing could be judged." in page["h1"][0]


def test_layers_that_are_all_right_are_summed_up() -> None:
    layers = 3
    run = right(layers=layers)
    one = bisect(run, run, weights=tiny().weights).to_json()
    rows = [row for row in one["stages"] if row["layer"] == 1]
    one["stages"] = [{**row, "layer": layer} for layer in range(30) for row in rows]
    one["published_rule"]["layers"] = []
    page = Page(bisection_html(one))
    assert any(said.startswith("Layers 0 to 29: 510 stages, all right") for said in page["summary"])
    assert len(bisection_html(one).encode()) < 300_000


def test_a_page_without_jinja2_says_what_to_install() -> None:
    script = """
import sys
sys.modules["jinja2"] = None
from apr_falsify.errors import MissingDependencyError
from apr_falsify.evidence.page.render import render
try:
    render("bisection.html.j2", {})
except MissingDependencyError as error:
    print(error)
"""
    assert "pip install 'apr-falsify[report]'" in run_script(script).stdout


def test_missing_stages_of_the_reference_are_told_apart() -> None:
    bisection = bisect(without(right(), "ffn_up"), right(), weights=tiny().weights).to_json()
    assert "ffn_up of layer 0: missing in the reference." in Page(bisection_html(bisection))["li"]
