"""Which guesses are made of attention as one, and from which of its values their numbers are taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr_falsify.compare.judge import replayer_of
from apr_falsify.compare.variations.case import Case, open_case
from apr_falsify.compare.variations.fused import inside
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT
from tests.unit.compare.fused_runs import ATTENTION, flat, for_queries, heads, kernel, trace_of
from tests.unit.compare.wrong_stages import F64
from tests.unit.helpers import small_geometry

TOKENS, HEADS, HEAD_DIM = 6, 4, 4
GEOMETRY = small_geometry()


def case_of(scale: float = 1.0, sinks: torch.Tensor | None = None) -> Case:
    """Return attention with its scale times ``scale``, and with sinks, beside the right one."""
    q, k, v = heads(GEOMETRY, TOKENS, "f32")
    right = kernel(GEOMETRY, TOKENS, "online", "f32")
    how = replace(right, scale=right.scale * scale, sinks=sinks)
    made = how(q, for_queries(k, GEOMETRY), for_queries(v, GEOMETRY))
    replayer = replayer_of(trace_of(GEOMETRY, [q, k, v], made), None)
    found = open_case(replayer, ATTENTION, PLAIN, flat(made).astype(np.float64), LIMIT)
    assert found is not None
    return found


def changed(case: Case, at: tuple[int, slice], by: float) -> Case:
    subject: F64 = case.subject.copy()
    subject[at] *= by
    return replace(case, subject=subject)


def test_these_are_the_sizes() -> None:
    assert (GEOMETRY.heads, GEOMETRY.head_dim, GEOMETRY.attn_scale_at(0)) == (HEADS, HEAD_DIM, 0.5)


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (2.0, "no scale"),
        (0.5, "the scale applied twice"),
        (np.log(2), "exponentials of base 2"),
    ],
)
def test_a_scale_that_has_a_name_gets_it_and_the_models_own_is_none(by: float, says: str) -> None:
    guesses = list(inside(case_of(scale=by)))
    assert guesses[0].says == says
    assert guesses[0].instead == "the model's scale is 0.5"
    assert "the scale 1/sqrt(D)" not in {guess.says for guess in guesses}


def test_a_value_that_is_not_finite_hides_no_scale() -> None:
    guesses = list(inside(changed(case_of(scale=1.3), (2, slice(1)), np.nan)))
    assert guesses[0].says == "scores x 1.3 before the softmax"


def test_a_sink_is_the_median_of_what_tokens_show_whose_values_are_too_small() -> None:
    """One that is larger than without a sink shows none, and one whose values are gone."""
    sinks = torch.tensor([-1.0, 0.5, 1.5, 2.0])
    case = case_of(sinks=sinks)
    says = "a sink in each head (of score -1, 0.5, 1.5, 2)"
    assert next(inside(case)).says == says
    larger = changed(case, (3, slice(HEAD_DIM)), 40.0)
    assert says in {guess.says for guess in inside(larger)}
    gone = changed(case, (3, slice(HEAD_DIM)), 0.0)
    assert says in {guess.says for guess in inside(gone)}
    all_larger = case
    for token in range(TOKENS):
        all_larger = changed(all_larger, (token, slice(HEAD_DIM)), 40.0)
    assert not any(guess.says.startswith("a sink in each head") for guess in inside(all_larger))


@pytest.mark.parametrize("of_k", [True, False])
def test_every_wrong_order_of_kv_heads_is_named_with_what_reads_it(of_k: bool) -> None:
    q, k, v = heads(GEOMETRY, TOKENS, "f32")
    right = kernel(GEOMETRY, TOKENS, "online", "f32")
    reverse = [1, 1, 0, 0]
    k_read, v_read = for_queries(k, GEOMETRY), for_queries(v, GEOMETRY)
    made = right(q, k[reverse] if of_k else k_read, v_read if of_k else v[reverse])
    case = replace(case_of(), subject=flat(made).astype(np.float64))
    guess = next(inside(case))
    assert guess.says == f"kv heads in reverse order, in {'k' if of_k else 'v'} alone"
