"""Where marks stand, what a heat map holds, and why the published rule answers otherwise: by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.bisection import Kind
from apr_falsify.evidence.page.heat import CHANNEL_GROUPS, MOST_LINES, NOT_FINITE, heat_maps
from apr_falsify.evidence.page.plots import FIRST, INFINITE, LAST, ZERO, PlotLine, dot_plot, overviews
from apr_falsify.evidence.page.published import answers
from apr_falsify.evidence.page.view import Figures, PageRow, PageView, RowState, read_view
from apr_falsify.evidence.page.words import figure, headline, ranges, shortened, unchecked_sentence
from apr_falsify.model.stages import Key
from tests.unit.evidence.pages import Array, Case, case, changed, made, right, tiny, with_one


def view_of(found: Case) -> PageView:
    return read_view(found.bisection, found.oracle.geometry)


def lines_of(*rows: PageRow) -> list[PlotLine]:
    return list(dot_plot("p", rows, "").lines)


@pytest.fixture
def row() -> PageRow:
    """A row that is right: accumulated 1e-4, introduced and residual 1e-6, floor 1e-2."""
    first = view_of(made("consistent")).rows[4]
    figures = Figures(cosine=1.0, rel_l2=1e-4, norm_ratio=1.0, max_abs=0.0, at=())
    return replace(
        first,
        accumulated=figures,
        introduced=replace(figures, rel_l2=1e-6),
        residual=1e-6,
        floor=1e-2,
        excess=1e-4,
    )


def at(decade: float) -> float:
    """Eight decades, 1e-8 to 1, between FIRST and LAST."""
    return pytest.approx(FIRST + (decade + 8) / 8 * (LAST - FIRST), abs=0.01)


def test_a_mark_stands_at_its_logarithm(row: PageRow) -> None:
    (line,) = lines_of(row)
    assert {mark.kind: mark.x for mark in line.marks} == {"a": at(-4), "i": at(-6), "r": at(-6)}
    assert line.floor == at(-2)


def test_zero_and_what_is_not_finite_have_places_of_their_own(row: PageRow) -> None:
    assert row.accumulated is not None
    zero = replace(row, accumulated=replace(row.accumulated, rel_l2=0.0))
    endless = replace(row, accumulated=replace(row.accumulated, rel_l2=None))
    first, last = lines_of(zero, endless)
    assert (first.marks[0].x, last.marks[0].x) == (ZERO, INFINITE)
    assert all(mark.x < INFINITE for mark in first.marks)


def test_a_stage_with_values_that_are_not_finite_has_a_mark_there() -> None:
    found = view_of(made("nan"))
    (line,) = (line for line in dot_plot("p", found.rows, "").lines if line.label == "ffn_up")
    assert INFINITE in [mark.x for mark in line.marks]


def test_what_was_not_captured_has_a_line_that_says_so() -> None:
    found = view_of(made("missing"))
    (scores,) = (line for line in dot_plot("p", found.rows, "").lines if line.label == "attn_scores")
    assert scores.note == "missing on one side"
    assert scores.marks == ()


@pytest.mark.parametrize("value", [5e-324, 1.7e308])
def test_the_smallest_and_the_largest_number_stand_on_the_axis(row: PageRow, value: float) -> None:
    assert row.accumulated is not None
    extreme = replace(row, accumulated=replace(row.accumulated, rel_l2=value))
    (line,) = lines_of(extreme)
    assert all(FIRST <= mark.x <= LAST for mark in line.marks)


def test_an_overview_has_a_glyph_for_each_stage_of_each_layer() -> None:
    (found,) = overviews(view_of(made("localised")))
    glyphs = [glyph for glyph, _, _ in found.cells]
    assert len(glyphs) == 3 * 17 + 1
    assert glyphs.count("gs") == 1
    assert overviews(view_of(made("consistent"))) == []


def test_many_layers_stand_in_several_parts() -> None:
    found = view_of(made("consistent"))
    rows = tuple(replace(row, key=Key(layer, row.stage)) for layer in range(80) for row in found.rows)
    assert [len(part.layers) for part in overviews(replace(found, rows=rows))] == [32, 32, 16]


def heat_of(found: Case, *, weights: bool = True) -> dict[tuple[str, int], tuple[int, str]]:
    """Line and token -> level and figure, of the first map."""
    first = heat_maps(view_of(found), *found.traces, tiny().weights if weights else None)[0]
    return {
        (label, token): (cell.level, cell.told)
        for label, _, cells in first.lines
        for token, cell in enumerate(cells)
    }


def test_a_head_of_one_token_that_is_wrong_is_the_one_cell_that_is_not_rounding() -> None:
    def spoil(data: Array) -> Array:
        data[2, 3 * 32 : 4 * 32] *= np.float32(1.25)
        return data

    spoiled = changed(right(), Key(0, "q_post_rope"), spoil)
    cells = heat_of(case(right(), spoiled))
    assert cells.pop(("head 3", 2)) == (5, "25%")
    assert len(cells) == 8 * 7 - 1
    assert set(cells.values()) == {(0, "·")}


def test_scores_are_told_per_head_and_query() -> None:
    def spoil(data: Array) -> Array:
        data[5, 6] *= np.float32(1.002)
        return data

    cells = heat_of(case(right(), changed(right(), Key(0, "attn_scores"), spoil)))
    assert cells.pop(("head 5", 6)) == (3, "2e-3")
    assert set(cells.values()) == {(0, "·")}


def test_what_no_query_may_see_is_no_error_of_the_scores() -> None:
    def spoil(data: Array) -> Array:
        data[5, 6] *= np.float32(1.002)
        data[:, :3, 4:] = 0
        return data

    cells = heat_of(case(right(), changed(right(), Key(0, "attn_scores"), spoil)))
    assert cells.pop(("head 5", 6)) == (3, "2e-3")
    assert set(cells.values()) == {(0, "·")}


def test_a_stage_without_heads_is_told_per_group_of_channels() -> None:
    spoiled = changed(right(), Key(0, "post_ffn_residual"), with_one(1e6))
    cells = heat_of(case(right(), spoiled))
    assert len(cells) == CHANNEL_GROUPS * 7
    assert {place for place, (level, _) in cells.items() if level} == {("ch 0 to 15", 0)}


def test_a_value_that_is_not_finite_is_told_as_such() -> None:
    cells = heat_of(made("nan"))
    assert cells["ch 0 to 31", 0] == (NOT_FINITE, "NaN")
    assert sum(level == NOT_FINITE for level, _ in cells.values()) == 1


def test_without_weights_a_projection_is_compared_with_the_reference_and_says_so() -> None:
    spoiled = changed(right(), Key(0, "ffn_gate"), with_one(50.0))
    found = case(right(), spoiled)
    with_weights = heat_maps(view_of(found), *found.traces, tiny().weights)
    without = heat_maps(view_of(found), *found.traces, None)
    assert "recomputed from the subject's own inputs" in with_weights[0].against
    assert "the reference's" in without[0].against
    assert heat_of(found) == heat_of(found, weights=False)


def test_many_tokens_and_heads_are_summed_until_they_fit() -> None:
    tokens = tuple(range(5, 205))
    spoiled = changed(right(tokens), Key(0, "attn_softmax"), lambda x: x * np.float32(1.5))
    found = case(right(tokens), spoiled)
    (first, *_) = heat_maps(view_of(found), *found.traces, tiny().weights)
    assert len(first.lines) == 8
    assert all(sum(cell.width for cell in cells) == pytest.approx(100, abs=0.1) for *_, cells in first.lines)
    assert len(first.columns) <= 9 < MOST_LINES


def test_the_rule_answers_otherwise_for_reasons_that_are_told() -> None:
    first, second, third = answers(view_of(made("localised")))
    assert (first.rule, first.ours) == ("qkv_matmul → qkv_bias, q_post_rope → k_post_rope", "qkv_bias")
    assert first.reasons == (
        "k_post_rope differs only because its inputs do (the rule sets it beside q_post_rope, but it is "
        "computed from qkv_bias)",
    )
    assert second.ours == third.ours == ""
    assert third.reasons == (
        "attn_scores differs only because its inputs do: recomputed from them, it is what it should be",
    )


def test_a_scale_that_a_cosine_cannot_see_is_told_as_one() -> None:
    (answer,) = answers(view_of(made("several")))
    assert any(
        said.startswith("attn_scores is wrong, but a cosine cannot see a scale: the subject's norm is 2 ")
        for said in answer.reasons
    )


def test_answers_that_agree_need_no_reason() -> None:
    (answer,) = answers(view_of(made("consistent")))
    assert (answer.rule, answer.ours, answer.reasons) == ("", "", ())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1.26e-7, "1.3e-7"),
        (0.98, "0.98"),
        (73.5, "74"),
        (640.0, "640"),
        (6.5e6, "6.5e6"),
        (None, "\N{EN DASH}"),
    ],
)
def test_a_number_has_two_digits(value: float | None, said: str) -> None:
    assert figure(value) == said


def test_only_numbers_in_a_row_become_a_range() -> None:
    assert ranges([3, 0, 1, 2, 7]) == "0 to 3 and 7"
    assert shortened("layers: 2, 3, 4, 5") == "layers: 2 to 5"
    assert shortened("tokens 274, 272, 223") == "tokens 274, 272, 223"
    assert unchecked_sentence(["x" * 500]).endswith("….")


def test_a_stage_that_differs_by_an_undeclared_layout_has_its_own_state() -> None:
    found = view_of(made("layout-mismatch"))
    assert found.kind is Kind.LAYOUT_MISMATCH
    assert {row.stage for row in found.rows if row.state is RowState.LAYOUT} == {"q_post_rope", "k_post_rope"}
    assert "q_post_rope and k_post_rope" in headline(found)
