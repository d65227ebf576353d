"""One cause in many layers is told in every one; a rotation is judged with the rounding of its own pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from apr_falsify.compare import search
from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.traces.trace import Trace
from tests.unit.compare.wrong_stages import LAYER, D, H, K, Run, explained, tiny_run

THETA = 1e6


def rotated_pairs(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rotate [S, heads * D] in neighbouring pairs, all in f32."""
    pairs = torch.tensor(x).view(len(x), -1, D // 2, 2)
    frequencies = THETA ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * frequencies
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack(
        (even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()), dim=-1
    )
    return turned.reshape(len(x), -1).numpy()


def parts(run: Run | Trace, layer: int) -> dict[str, npt.NDArray[np.float32]]:
    trace = run.trace if isinstance(run, Run) else run
    fused = trace.stages[layer, "qkv_bias"].data
    return {"q": fused[:, : H * D], "k": fused[:, H * D : (H + K) * D]}


@pytest.mark.parametrize("seed", range(4))
def test_other_pairs_fit_where_their_sums_cancel(seed: int) -> None:
    """Every even channel is turned to 0, but for the rounding of its pair: half-split pairs have none."""
    run = tiny_run()
    old = run.trace.stages[LAYER, "qkv_bias"]
    radius = 10 ** np.random.default_rng(seed).uniform(-1, 2, (*old.data.shape[:1], H + 2 * K, D // 2))
    angles = np.outer(np.arange(len(old.data)), THETA ** (-np.arange(0, D, 2) / D))[:, None]
    pairs = np.stack((radius * np.sin(angles), radius * np.cos(angles)), axis=-1)
    values = pairs.reshape(old.data.shape).astype(np.float32)
    stages = {**run.trace.stages, (LAYER, "qkv_bias"): replace(old, data=values)}
    uneven = replace(run, trace=replace(run.trace, stages=stages))
    for role, x in parts(uneven, LAYER).items():
        cause = explained(uneven, f"{role}_post_rope", rotated_pairs(x))
        assert cause is not None
        assert (cause.name, cause.fits) == ("rope-pairing", True)


def in_every_layer() -> tuple[Bisection, int]:
    run = tiny_run()
    assert run.model is not None
    stages = dict(run.trace.stages)
    for layer in run.trace.layers:
        for role, x in parts(run, layer).items():
            key = (layer, f"{role}_post_rope")
            stages[key] = replace(stages[key], data=rotated_pairs(x))
    wrong = replace(run.trace, stages=stages)
    return bisect(run.trace, wrong, weights=run.model.weights), len(run.trace.layers)


def test_a_cause_of_every_layer_is_told_in_every_layer_although_few_are_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "SEARCHED_AT_MOST", 2)
    found, layers = in_every_layer()
    said = [each for each in found.sources if each.stages[0] in ("q_post_rope", "k_post_rope")]
    assert len(said) == 2 * layers
    assert {each.cause[0] for each in said if each.cause} == {"rope-pairing"}
    assert all("rotary pairs (0, 1), (2, 3) ... fits" in each.explanation for each in said)
    rest = [each for each in found.sources if each.stages == ("attn_scores",)]
    assert all("no other was looked for" in each.explanation for each in rest)
