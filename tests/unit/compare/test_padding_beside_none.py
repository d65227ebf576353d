"""A row that a runtime padded, beside an oracle that was captured without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apr_falsify.compare.bisection import Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import TokensError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import small_model

TOKENS = (3, 1, 4, 1, 5)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def traced(model: Model, *tokens: int, padding: int = 0) -> Trace:
    request = Request(
        tokens=tokens,
        layers=range(2),
        stages=tuple(STAGES),
        in_passes=Passes(sizes=(len(tokens),), padding=padding) if padding else None,
    )
    return capture(model, request, MemorySink())


def test_a_padded_row_is_compared_without_its_padding(model: Model) -> None:
    oracle, padded = traced(model, *TOKENS), traced(model, 0, 0, *TOKENS, padding=2)
    found = bisect(oracle, padded, weights=model.weights)
    assert (found.kind, found.tokens, found.sources) == (Kind.CONSISTENT, TOKENS, ())
    key = Key(1, "ffn_out")
    data = padded.stages[key].data.copy()
    data[3] *= 1.01
    stages = {**padded.stages, key: replace(padded.stages[key], data=data)}
    wrong = bisect(oracle, replace(padded, stages=stages), weights=model.weights)
    accused = [(1, ("ffn_out",)), (1, ("post_ffn_residual",))]  # the sum is of what was computed
    assert [(one.layer, one.stages) for one in wrong.sources] == accused


def test_padding_before_other_tokens_is_left_where_it_is(model: Model) -> None:
    oracle = traced(model, *TOKENS)
    for other in ((3, 1, 4, 1, 6), TOKENS[:-1]):
        with pytest.raises(TokensError):
            bisect(oracle, traced(model, 0, 0, *other, padding=2), weights=model.weights)


def test_two_padded_rows_are_compared_with_it(model: Model) -> None:
    padded = traced(model, 0, 0, *TOKENS, padding=2)
    found = bisect(padded, padded, weights=model.weights)
    assert (found.kind, found.tokens) == (Kind.CONSISTENT, (0, 0, *TOKENS))
