"""A cause that is one number off is solved for that number, and so every family has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from apr_falsify.compare.variations.positions import position_words
from apr_falsify.model.stages import STAGES as STAGES_BY_NAME
from apr_falsify.model.stages import Key
from tests.unit.compare.family_runs import Run, cause_of, run_of
from tests.unit.compare.spoiled import request_of, spoiled_run
from tests.unit.compare.wrong_multipliers import CAPS, MULTIPLIERS
from tests.unit.compare.wrong_turns import LONG, NORMS, PHI3, ROTATIONS, SHORT, K, longrope, steps, turned

Runs = Callable[[str], Run]
SOLVED = {**MULTIPLIERS, **CAPS, **ROTATIONS, **NORMS}
RECIPES = sorted({fault.recipe for fault in SOLVED.values()})
STAGES = sorted({fault.key for fault in SOLVED.values()}, key=str)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return cache(lambda recipe: run_of(tmp_path_factory.mktemp(recipe), recipe))


@pytest.mark.parametrize("name", SOLVED)
def test_what_is_one_number_off_gets_its_name(name: str, runs: Runs) -> None:
    fault = SOLVED[name]
    found = cause_of(runs(fault.recipe), fault.key, fault.make(runs(fault.recipe)))
    assert found is not None
    assert (found.name, found.fits) == (fault.cause, True), found
    assert re.search(fault.says, found.sentence), found.sentence


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_right_run_gets_no_cause(recipe: str, runs: Runs) -> None:
    run = runs(recipe)
    for key in run.trace.stages:
        assert cause_of(run, key, run[key]) is None, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_noise_is_not_solved_for(recipe: str, runs: Runs) -> None:
    """Every measured number is off the model's a little then, and none of them fits."""
    run, generator = runs(recipe), torch.Generator().manual_seed(1)
    for key in STAGES:
        if key not in run.trace.stages:
            continue
        noise = torch.randn(run[key].shape, generator=generator, dtype=torch.float64)
        found = cause_of(run, key, run[key] * (1 + 0.01 * noise))
        assert found is None or not found.fits, found


@pytest.mark.parametrize(
    ("key", "by", "says"),
    [
        (Key(1, "attn_scores"), 50.0, "values soft-capped at 50 fits"),
        (Key(1, "attn_scores"), 0.0, "no soft-cap of 3 fits"),
        (Key(None, "lm_head"), 17.0, "values soft-capped at 17 fits"),
        (Key(None, "lm_head"), 0.0, "no soft-cap of 30 fits"),
    ],
)
def test_a_cap_is_solved_for_where_what_is_capped_was_captured(
    key: Key, by: float, says: str, runs: Runs
) -> None:
    before = {"attn_scores": "attn_scores_uncapped", "lm_head": "lm_head_proj"}[key[1]]
    run = runs("gemma2")
    request = replace(request_of(run.model), stages=tuple(STAGES_BY_NAME))
    trace = spoiled_run(run.model, request, {})
    x = torch.from_numpy(trace.stages[key[0], before].data.astype(np.float64))
    wrong = x if by == 0 else by * torch.tanh(x / by)
    found = cause_of(replace(run, trace=trace), key, wrong, request)
    assert found is not None
    assert (found.name, found.fits) == ("soft-cap", True), found
    assert found.sentence.startswith(says), found.sentence


def test_the_short_factors_beyond_the_original_context(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = run_of(tmp_path_factory.mktemp("long"), PHI3, tokens=20)
    right = turned(run, K, steps(12, divisors=LONG), range(20), longrope(8))
    np.testing.assert_allclose(right, run[K], atol=1e-5)
    found = cause_of(run, K, turned(run, K, steps(12, divisors=SHORT), range(20), longrope(8)))
    assert found is not None
    assert (found.name, found.fits) == ("rope-scaling", True)
    assert "the short factors for the long ones fits (residual" in found.sentence
    assert "20 tokens are beyond the original context of 16" in found.sentence


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ((0, 1, 2, 2, 3), "tokens 3 to 4 at positions 2 to 3"),
        ((0, 0, 0, 0, 4), "tokens 1 to 3 at position 0"),
        ((9, 1, 2, 3, 4), "token 0 at position 9"),
        (
            (5, 1, 6, 3, 7, 5, 8, 7, 9, 9, 3, 11),
            "token 0 at position 5, token 2 at position 6, token 4 at position 7, token 6 at position 8"
            " and 2 more runs of tokens elsewhere",
        ),
    ],
)
def test_tokens_elsewhere_are_told_in_runs(places: tuple[int, ...], said: str) -> None:
    assert position_words(np.arange(len(places)), np.asarray(places)) == said
