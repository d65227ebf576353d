"""How a run computed its tokens: what each row may see, what is data, what a trace says, what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import AprFalsifyError, PassesError, TraceError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.passes import Passes, check_sum
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from apr_falsify.traces.identity import difference
from apr_falsify.traces.trace import read_trace
from tests.unit.helpers import TINY


def rows(text: str) -> list[list[int]]:
    return [[int(digit) for digit in row] for row in text.split()]


def test_a_row_sees_itself_and_what_was_before_in_whatever_pass() -> None:
    passes = Passes(sizes=(2, 1, 1))
    assert passes.visible(None).astype(int).tolist() == rows("1000 1100 1110 1111")
    assert passes.visible(2).astype(int).tolist() == rows("1000 1100 0110 0011")


def test_a_row_is_data_up_to_the_end_of_its_pass() -> None:
    assert Passes(sizes=(2, 1, 1)).computed().astype(int).tolist() == rows("1100 1100 1110 1111")
    assert Passes.whole(3).computed().all()


def test_padding_is_seen_by_nobody_and_is_no_data_but_weight_on_it_is() -> None:
    passes = Passes(sizes=(3, 1), padding=1)
    assert passes.visible(None).astype(int).tolist() == rows("1000 0100 0110 0111")
    assert passes.computed().astype(int).tolist() == rows("0000 0110 0110 0111")
    assert passes.weighted().astype(int).tolist() == rows("0000 1110 1110 1111")
    assert passes.at.tolist() == [0, 0, 1, 2], "positions are counted after the padding"


def test_a_pass_is_seen_with_the_keys_before_it() -> None:
    second = Passes(sizes=(3, 2, 1), padding=1).first(2)
    assert (second.sizes, second.unseen, second.rows, second.tokens) == ((3, 2), 3, 2, 5)
    assert second.at.tolist() == [0, 0, 1, 2, 3]


def test_positions_that_are_counted_anyway_say_nothing() -> None:
    assert Passes(sizes=(3,), positions=(0, 1, 2)) == Passes.whole(3)
    assert Passes(sizes=(3,), positions=(0, 1, 2)).plain
    assert not Passes(sizes=(3,), positions=(5, 6, 7)).plain


@pytest.mark.parametrize(
    "passes",
    [
        Passes.whole(4),
        Passes(sizes=(2, 1, 1)),
        Passes(sizes=(3, 1), padding=2),
        Passes(sizes=(4,), positions=(5, 6, 7, 8)),
        Passes(sizes=(2, 2), unseen=2),
    ],
)
def test_what_a_trace_says_is_read_back(passes: Passes) -> None:
    assert Passes.from_json(json.loads(json.dumps(passes.to_json())), 4) == passes


def test_a_plain_run_says_nothing_and_an_old_trace_is_one_pass() -> None:
    assert Passes.whole(4).to_json() == {}
    assert Passes.from_json({}, 4) == Passes.whole(4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": (2, 0)}, "a pass of 0 tokens"),
        ({"sizes": (2,), "positions": (0,)}, "1 positions for 2 tokens"),
        ({"sizes": (2,), "positions": (0, -1)}, "at position -1"),
        ({"sizes": (2,), "padding": 2}, "2 of 2 tokens are padding"),
        ({"sizes": (2, 2), "unseen": 1}, "1 tokens before the recording"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(PassesError, match=said):
        Passes(**wrong)


def test_positions_are_whole_numbers() -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        Passes(sizes=(2,), positions=(0, 1.5))


def test_passes_add_up_to_the_tokens() -> None:
    with pytest.raises(PassesError, match="passes of 3, 2 tokens hold 5, and 4 were run"):
        check_sum((3, 2), 4)


REQUEST = Request(
    tokens=(5, 6, 7, 8, 9), layers=range(2), stages=("k_post_rope", "attn_scores", "attention", "attn_out")
)


def test_a_run_in_passes_is_written_and_read_back(tmp_path: Path) -> None:
    model, passes = open_model(TINY), Passes(sizes=(3, 1, 1))
    request = replace(REQUEST, in_passes=passes)
    with TraceWriter(tmp_path / "trace") as writer:
        written = capture(model, request, writer)
    found = read_trace(tmp_path / "trace")
    assert found.passes == written.passes == passes
    assert difference(found, request, model.geometry, {}) is None
    assert "passes are" in (difference(found, REQUEST, model.geometry, {}) or "")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"passes": [3, 1]}, "hold 4, and 5 were run"),
        ({"passes": [3, 2, 0]}, "hold 5"),
        ({"passes": "all"}, "passes is 'all'"),
        ({"positions": [0, 1, 2, 3, 4.5]}, "not a whole number"),
        ({"padding": 5}, "5 of 5 tokens are padding"),
    ],
)
def test_a_trace_with_passes_that_cannot_be_is_refused(
    tmp_path: Path, edit: dict[str, object], said: str
) -> None:
    with TraceWriter(tmp_path / "trace") as writer:
        capture(open_model(TINY), REQUEST, writer)
    path = tmp_path / "trace" / "trace.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(TraceError, match=said):
        read_trace(tmp_path / "trace")


def test_a_request_whose_passes_do_not_fit_is_refused() -> None:
    with pytest.raises(AprFalsifyError, match="hold 4, and 5 were run"):
        capture(open_model(TINY), replace(REQUEST, in_passes=Passes(sizes=(3, 1))), MemorySink())


@pytest.mark.parametrize("sizes", [(5, 1, 1), (3, 3, 1), (1,) * 7])
def test_the_embedded_runtime_with_a_cache_computes_what_it_does_at_once(sizes: tuple[int, ...]) -> None:
    model = open_model(TINY)
    whole = Request(
        tokens=(5, 6, 7, 8, 9, 10, 11), layers=range(3), stages=("k_post_rope", "attn_out", "lm_head")
    )
    at_once = capture(model, whole, MemorySink(), dtype="f64")
    cached = capture(model, replace(whole, in_passes=Passes(sizes=sizes)), MemorySink(), dtype="f64")
    for key, array in at_once.stages.items():
        np.testing.assert_allclose(
            cached.stages[key].data, array.data, rtol=1e-9, atol=1e-9, err_msg=str(key)
        )
