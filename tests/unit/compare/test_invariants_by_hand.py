"""How far an invariant may be off: worked out by hand on stages whose values are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.invariants import InvariantCheck, InvariantOutcome, checks, invariants
from apr_falsify.model.stages import Key
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.compare.wrong_stages import small_run
from tests.unit.helpers import KNOBS

F64 = npt.NDArray[np.float64]
U, F16 = 2.0**-24, 2.0**-11
HELD, BROKEN = InvariantOutcome.HOLDS, InvariantOutcome.VIOLATED


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Five tokens, 4 heads and 2 kv heads of 4 channels, two layers, no biases."""
    return small_run().trace


def put(trace: Trace, dtype: str = "f32", **stages: F64) -> Trace:
    """Return the trace with stages of layer 1 replaced; kept in another format where one is named."""
    new = {Key(1, name): StageArray(data=values) for name, values in stages.items()}
    provenance = replace(trace.provenance, dtype=dtype)
    return replace(trace, stages={**trace.stages, **new}, provenance=provenance)


def check(trace: Trace, invariant: str, stage: str = "") -> InvariantCheck:
    (found,) = [
        each
        for each in checks(trace)
        if each.layer == 1 and each.invariant == invariant and stage in ("", each.stage)
    ]
    return found


# --- rows of softmax --------------------------------------------------------------------


def one_hot(*rows: tuple[int, int, float]) -> F64:
    """Return weights of each token on itself alone; ``rows`` are (head, token, sum)."""
    weights = np.tile(np.eye(5), (4, 1, 1))
    for head, token, total in rows:
        weights[head, token, token] = total
    return weights


@pytest.mark.parametrize(
    ("off", "outcome"),
    # 8 * hypot(1 / sqrt(3), sqrt(5) / 3 + 4) = 38.2 unit roundoffs
    [(36, HELD), (40, BROKEN), (-36, HELD), (-40, BROKEN)],
)
def test_a_row_of_one_weight_sums_to_one_within_38_roundings(
    trace: Trace, off: int, outcome: InvariantOutcome
) -> None:
    found = check(put(trace, attn_softmax=one_hot((2, 3, 1 + off * U))), "softmax-rows")
    assert found.outcome is outcome
    assert found.size == pytest.approx(abs(off) * U)


def test_rows_that_do_not_sum_to_one_are_counted_and_the_worst_is_named(trace: Trace) -> None:
    spoilt = one_hot((2, 3, 1.5), (0, 4, 0.25), (3, 1, 1.125))
    (found,) = invariants(put(trace, attn_softmax=spoilt))
    assert (found.layer, found.stage) == Key(1, "attn_softmax")
    assert found.sentence == "3 of 20 rows of softmax do not sum to 1; head 0, token 4 sums to 0.25"
    assert found.size == 0.75


@pytest.mark.parametrize(("off", "outcome"), [(4.5, HELD), (4.8, BROKEN)])
def test_a_row_of_f16_weights_is_rounded_as_f16_rounds(
    trace: Trace, off: float, outcome: InvariantOutcome
) -> None:
    # 8 * (1 / sqrt(3) + a trifle) = 4.62 unit roundoffs of f16
    found = check(put(trace, "f16", attn_softmax=one_hot((2, 3, 1 + off * F16))), "softmax-rows")
    assert found.outcome is outcome


# --- the mask ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "outcome"), [(2.0**-126, HELD), (2.0**-125, BROKEN), (-(2.0**-125), BROKEN)]
)
def test_what_is_hidden_has_no_weight_that_f32_can_tell_from_zero(
    trace: Trace, weight: float, outcome: InvariantOutcome
) -> None:
    spoilt = one_hot()
    spoilt[1, 2, 4] = weight
    assert check(put(trace, attn_softmax=spoilt), "mask").outcome is outcome


def test_a_weight_on_the_future_is_named_with_its_place(trace: Trace) -> None:
    spoilt = one_hot()
    spoilt[1, 2, 4], spoilt[3, 0, 1] = 0.25, 0.125
    found = check(put(trace, attn_softmax=spoilt), "mask")
    assert found.sentence == "head 1: token 2 gives 0.25 of its weight to token 4, a later token"
    assert found.size == 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_hidden_weight_that_is_not_finite_is_left_to_the_counts(trace: Trace, value: float) -> None:
    spoilt = one_hot()
    spoilt[1, 2, 4] = value
    assert check(put(trace, attn_softmax=spoilt), "mask").outcome is HELD


def test_a_window_is_a_mask_too() -> None:
    run = small_run(**KNOBS["mistral"]).trace  # a window of 3
    spoilt = np.tile(np.eye(5), (4, 1, 1))
    spoilt[0, 4, 2] = 0.5
    assert check(put(run, attn_softmax=spoilt), "mask").outcome is HELD
    spoilt[0, 4, 1] = 0.5
    found = check(put(run, attn_softmax=spoilt), "mask")
    assert found.sentence == (
        "head 0: token 4 gives 0.5 of its weight to token 1, a token outside its window of 3"
    )


# --- lengths ----------------------------------------------------------------------------


def pairs(length: float, at: tuple[int, int] = (3, 5)) -> F64:
    """Return q of 4 heads: every rotary pair (1, 0), one of them of another length."""
    q = np.zeros((5, 4, 2, 2))
    q[:, :, 0] = 1.0
    q[at[0], at[1] // 2, 0, at[1] % 2] = length
    return q.reshape(5, 16)


def turned(trace: Trace, length: float, dtype: str = "f32", role: str = "q") -> Trace:
    before, after = pairs(1.0), pairs(length)
    if role == "k":
        before, after = before[:, :8], after[:, :8]
    fused = np.zeros((5, 32))
    fused[:, (0 if role == "q" else 16) :][:, : before.shape[1]] = before
    return put(trace, dtype, **{"qkv_matmul": fused, f"{role}_post_rope": after})


@pytest.mark.parametrize(
    ("off", "outcome"),
    # 8 * hypot(2, sqrt(2 / 3)) = 17.28 unit roundoffs
    [(17, HELD), (18, BROKEN), (-17, HELD), (-18, BROKEN)],
)
def test_rope_leaves_a_length_within_17_roundings(trace: Trace, off: int, outcome: InvariantOutcome) -> None:
    found = check(turned(trace, 1 + off * U), "rope-length", "q_post_rope")
    assert found.outcome is outcome
    assert found.size == pytest.approx(abs(off) * U, rel=1e-6)


@pytest.mark.parametrize(("off", "outcome"), [(6.4, HELD), (6.7, BROKEN)])
def test_rope_in_f16_rounds_as_f16_does(trace: Trace, off: float, outcome: InvariantOutcome) -> None:
    # 8 * sqrt(2 / 3) = 6.53 unit roundoffs of f16, and two of its smallest steps
    assert check(turned(trace, 1 + off * F16, "f16"), "rope-length", "q_post_rope").outcome is outcome


def test_a_length_that_changed_is_named_with_token_and_head(trace: Trace) -> None:
    found = check(turned(trace, 1.5), "rope-length", "q_post_rope")
    assert found.sentence.startswith("RoPE changes the length of q's pairs, by 0.5 of it at token 3, head 2")
    found = check(turned(trace, 1.5, role="k"), "rope-length", "k_post_rope")
    assert found.outcome is HELD  # that pair of q is none of k


# --- the first token's value --------------------------------------------------------------


def valued(trace: Trace, first: Any, dtype: str = "f32") -> Trace:
    fused = np.zeros((5, 32))
    fused[:, 24:28], fused[:, 28:] = 1.0, 2.0  # V of kv head 0 and of kv head 1
    mixed = np.zeros((5, 16))
    mixed[0] = np.repeat([1.0, 1.0, 2.0, 2.0], 4)
    mixed[0] = first(mixed[0])
    return put(trace, dtype, qkv_matmul=fused, attention=mixed)


@pytest.mark.parametrize(("off", "outcome"), [(39, HELD), (41, BROKEN), (-39, HELD), (-41, BROKEN)])
def test_the_first_token_gets_its_own_v_within_40_roundings(
    trace: Trace, off: int, outcome: InvariantOutcome
) -> None:
    found = check(valued(trace, lambda own: own * (1 + off * U)), "first-value")
    assert found.outcome is outcome


@pytest.mark.parametrize(("off", "outcome"), [(7.9, HELD), (8.1, BROKEN)])
def test_a_first_value_in_f16_rounds_as_f16_does(trace: Trace, off: float, outcome: InvariantOutcome) -> None:
    found = check(valued(trace, lambda own: own * (1 + off * F16), "f16"), "first-value")
    assert found.outcome is outcome


def test_a_first_value_that_is_another_kv_heads_names_whose(trace: Trace) -> None:
    found = check(valued(trace, lambda own: np.repeat([1.0, 2.0, 1.0, 2.0], 4)), "first-value")
    assert found.sentence.startswith("the first token's attention is not its V: head 1 differs")
    assert found.sentence.endswith("; query heads read the kv heads 0, 1, 0, 1")


def test_a_first_value_that_is_no_kv_heads_names_none(trace: Trace) -> None:
    found = check(valued(trace, lambda own: own + np.arange(16)), "first-value")
    assert found.outcome is BROKEN
    assert "query heads" not in found.sentence


def test_a_first_value_that_was_rounded_to_f16_by_a_cache_is_told_as_such(trace: Trace) -> None:
    values = 1 + np.linspace(0, 1, 8) / 3
    fused = np.zeros((5, 32))
    fused[:, 24:] = values
    mixed = np.zeros((5, 16))
    heads = values.astype(np.float16).astype(np.float64).reshape(2, 4)
    mixed[0] = np.repeat(heads, 2, axis=0).reshape(16)
    found = check(put(trace, qkv_matmul=fused, attention=mixed), "first-value")
    assert (found.outcome, "f16" in found.sentence) == (HELD, True)


# --- what is looked at ----------------------------------------------------------------------


def test_every_layer_has_its_five_checks_in_forward_order(trace: Trace) -> None:
    found = [(each.layer, each.invariant, each.stage) for each in checks(trace)]
    of_layer = [
        ("softmax-rows", "attn_softmax"),
        ("mask", "attn_softmax"),
        ("rope-length", "q_post_rope"),
        ("rope-length", "k_post_rope"),
        ("first-value", "attention"),
    ]
    assert found == [(layer, *each) for layer in range(2) for each in of_layer]
    assert {each.outcome for each in checks(trace)} == {HELD}
