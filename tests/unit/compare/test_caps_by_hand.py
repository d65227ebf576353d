"""What the guesses about soft-caps are, by hand: c * tanh(x / c), what it leaves, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.variations.caps import soft_capped, uncapped
from apr_falsify.compare.variations.case import Case
from apr_falsify.operators.roundoff import Known
from tests.unit.compare.cases import case_of, close, replayed, saying
from tests.unit.compare.wrong_stages import F64, Run, small_run

U = 2.0**-24


@pytest.fixture(scope="module")
def run() -> Run:
    """Five tokens; 4 heads and 2 kv heads of 4 channels, no cap."""
    return small_run()


def declaring(run: Run, **geometry: Any) -> Run:
    """Return the run as one of a model with other constants."""
    return replace(run, trace=replace(run.trace, geometry=replace(run.trace.geometry, **geometry)))


def capped(x: F64, cap: float) -> F64:
    return np.asarray(cap * np.tanh(x / cap))


def said(case: Case) -> list[str]:
    return [guess.says for guess in soft_capped(case)]


# --- which caps are tried ----------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [15.0, 20.0, 30.0, 50.0, 100.0])
def test_a_usual_cap_is_tried_first_where_the_measured_one_is_within_a_tenth(usual: float, run: Run) -> None:
    right = replayed(run, "ffn_norm")
    x = right * (3 * usual / np.max(np.abs(right)))
    case = replace(case_of(run, "ffn_norm"), expected=x)
    first = f"values soft-capped at {usual:g}"
    assert said(replace(case, subject=capped(x, 1.09 * usual)))[0] == first
    assert said(replace(case, subject=capped(x, 0.91 * usual)))[0] == first
    assert first not in said(replace(case, subject=capped(x, 1.11 * usual)))
    assert first not in said(replace(case, subject=capped(x, 0.89 * usual)))


def test_a_measured_cap_is_told_in_two_three_and_five_digits_and_as_it_is(run: Run) -> None:
    case = case_of(run, "lm_head", capped(replayed(run, "lm_head"), 1.2345678))
    assert said(case) == [f"values soft-capped at {cap}" for cap in ("1.2", "1.23", "1.2346", "1.23457")]
    close(list(soft_capped(case))[-1].values, capped(case.expected, 1.2345678))


def test_a_value_that_is_not_finite_hides_no_cap(run: Run) -> None:
    subject = capped(replayed(run, "lm_head"), 2.5)
    subject.reshape(-1)[np.argmax(np.abs(subject))] = np.nan
    assert said(case_of(run, "lm_head", subject))[0] == "values soft-capped at 2.5"


@pytest.mark.parametrize(("share", "named"), [(1.5e-6, True), (0.5e-6, False)])
def test_a_cap_takes_a_millionth_of_the_largest_value_or_is_none(share: float, named: bool, run: Run) -> None:
    """Of z = x / c the cap takes z^2 / 3 where that is little."""
    x = replayed(run, "lm_head")
    cap = float(np.max(np.abs(x))) / np.sqrt(3 * share)
    assert bool(said(case_of(run, "lm_head", capped(x, cap)))) is named


# --- under another cap than the model's ---------------------------------------------------------------


def test_a_cap_leaves_little_of_a_rounding_where_values_are_near_it(run: Run) -> None:
    """The slope of c * tanh(x / c) is 1 / cosh^2(x / c)."""
    right = case_of(run, "lm_head")
    x = right.expected
    case = replace(right, subject=capped(x, 2.0), sigma=np.full(x.shape, 1e-3))
    sigma = saying(soft_capped(case), "values soft-capped at 2").sigma
    assert sigma is not None
    np.testing.assert_allclose(sigma, 1e-3 / np.cosh(x / 2) ** 2, rtol=1e-3, atol=16 * U)
    right = case_of(run, "lm_head", capped(x, 2.0))
    own = saying(soft_capped(right), "values soft-capped at 2").sigma
    assert own is not None
    assert np.all(own >= 0.5 * U * np.abs(capped(x, 2.0)))  # and it is rounded itself


def test_scores_that_a_tiny_cap_has_levelled_are_computed_again(run: Run) -> None:
    """Nothing of q.k is left in scores under a cap of a hundredth: it is taken from q and k."""
    x = replayed(run, "attn_scores")
    levelled = declaring(run, attn_softcap=0.01)
    case = case_of(levelled, "attn_scores", capped(x, 7.0))
    close(case.expected, capped(x, 0.01))
    guess = saying(soft_capped(case), "values soft-capped at 7")
    close(guess.values, capped(x, 7.0))
    assert guess.instead == "the model declares 0.01"
    close(saying(soft_capped(case), "no soft-cap of 0.01").values, x)


# --- what was capped ----------------------------------------------------------------------------------


def test_what_was_capped_is_told_by_the_values_up_to_near_the_cap(run: Run) -> None:
    """x = c atanh(y / c), its rounding that of y over the slope; nearer to c it grows with x."""
    of_model = declaring(run, final_softcap=4.0)
    case = case_of(of_model, "lm_head")
    x = np.zeros(case.expected.shape)
    x.reshape(-1)[:4] = 2.0, -6.0, 10.0, 16.0  # of which the cap leaves 0.46, 0.905, 0.987 and 0.9993
    case = replace(case, expected=capped(x, 4.0), sigma=np.full(x.shape, 1e-6))
    values, sigma = uncapped(case)
    close(values, x)
    slope = 1 / np.cosh(np.array([2.0, -6.0, 10.0]) / 4) ** 2
    np.testing.assert_allclose(sigma.reshape(-1)[:3], 1e-6 / slope, rtol=1e-9)
    np.testing.assert_allclose(sigma.reshape(-1)[3], 1e-6 / slope[2] * 16 / 10, rtol=1e-9)


@pytest.mark.parametrize(
    ("stage", "before", "scale"),
    [("lm_head", "lm_head_proj", 0.125), ("attn_scores", "attn_scores_uncapped", 1.0)],
)
def test_what_was_captured_before_the_cap_is_taken_as_it_is(
    stage: str, before: str, scale: float, run: Run
) -> None:
    """Logits with the model's scale of logits, which comes between; a value without a rounding has one."""
    of_model = declaring(run, final_softcap=4.0, attn_softcap=4.0, logit_scale=0.125)
    case = case_of(of_model, stage)
    x = 1.0 + np.arange(case.expected.size, dtype=np.float64).reshape(case.expected.shape)
    values, sigma = uncapped(replace(case, known={before: Known(value=x, sigma=None)}))
    close(values, x * scale)
    close(sigma / U, x * scale)
    values, sigma = uncapped(replace(case, known={before: Known(value=x, sigma=x / 8)}))
    close(sigma, x / 8 * scale)
