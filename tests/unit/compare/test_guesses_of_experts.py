"""What the guesses about a mixture's experts are, by plain loops over the file's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.variations.experts import has_own_form, measured_part, one_expert, other_form
from tests.unit.compare.cases import case_of, close, replayed, saying
from tests.unit.compare.family_runs import run_of
from tests.unit.compare.wrong_stages import F64, Run

Runs = Callable[[str], Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    @cache
    def made(recipe: str) -> Run:
        found = run_of(tmp_path_factory.mktemp(recipe), recipe)
        tensors = {name: tensor.numpy() for name, tensor in found.tensors.items()}
        return Run(trace=found.trace, model=found.model, tensors=tensors)

    return made


def sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-x)))


def expert(run: Run, name: str, x: F64) -> F64:
    """Return down(silu(gate(x)) * up(x)) of the expert that is called ``name``."""
    gate, up, down = (run.w(f"mlp.{name}.{part}_proj.weight") for part in ("gate", "up", "down"))
    gated = x @ gate.T
    return np.asarray((gated * sigmoid(gated) * (x @ up.T)) @ down.T)


def shares_of(run: Run, router: str) -> F64:
    """Return the softmax over the logits of each token's best two experts, 0 for the others: [S, experts]."""
    bias = run.w(f"{router}.bias") if f"model.layers.{run.layer}.{router}.bias" in run.tensors else 0.0
    logits = run["ffn_norm"] @ run.w(f"{router}.weight").T + bias
    assert run.trace.geometry.experts_per_token == 2
    raised = np.where(logits >= np.sort(logits, axis=1)[:, -2:-1], np.exp(logits), 0.0)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


# --- which have a form of their own --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "own"),
    [
        ({}, False),
        ({"expert_limit": 7.0}, True),
        ({"expert_alpha": 1.702}, True),
        ({"expert_shift": 1.0}, True),
        ({"expert_bias": True}, True),
    ],
)
def test_one_constant_is_enough_for_a_form_of_its_own(
    constants: dict[str, Any], own: bool, runs: Runs
) -> None:
    case = case_of(runs("qwen3_moe"), "ffn_out")
    trace = replace(case.replayer.trace, geometry=replace(case.geometry, **constants))
    assert has_own_form(replace(case, replayer=Replayer(trace, case.weights, case.replayer.store))) is own


def test_a_stage_that_is_no_mixture_has_no_form_of_experts(runs: Runs) -> None:
    assert has_own_form(case_of(runs("gpt_oss"), "ffn_out"))
    assert not has_own_form(case_of(runs("gpt_oss"), "attn_out"))


def gpt_oss(run: Run, halves: bool = False, **changed: float) -> F64:
    """Return the experts of gpt-oss: gate and up stand in turn, or are read as the two halves."""
    g = run.trace.geometry
    assert g.expert_limit is not None
    limit, alpha = changed.get("limit", g.expert_limit), changed.get("alpha", g.expert_alpha)
    x, shares = run["ffn_norm"], shares_of(run, "mlp.router")
    found = np.zeros_like(x)
    for one in range(g.experts):
        both = x @ run.w("mlp.experts.gate_up_proj")[one] + run.w("mlp.experts.gate_up_proj_bias")[one]
        half = both.shape[1] // 2
        gate, up = (both[:, :half], both[:, half:]) if halves else (both[:, ::2], both[:, 1::2])
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        made = (up + changed.get("shift", 1.0)) * gate * sigmoid(alpha * gate)
        made = made @ run.w("mlp.experts.down_proj")[one] + run.w("mlp.experts.down_proj_bias")[one]
        found += shares[:, one : one + 1] * made
    return found


def test_every_constant_of_the_experts_may_be_left_out_and_their_halves_mistaken(runs: Runs) -> None:
    run = runs("gpt_oss")
    case = case_of(run, "ffn_out")
    np.testing.assert_allclose(case.expected, gpt_oss(run), rtol=1e-9, atol=1e-12)
    expected = {
        "no clamp of gate and up in the experts": gpt_oss(run, limit=np.inf),
        "the 1.702 within the experts' sigmoid left out": gpt_oss(run, alpha=1.0),
        "up without the 1 added": gpt_oss(run, shift=0.0),
        "plain silu(gate) * up in the experts": gpt_oss(run, limit=np.inf, alpha=1.0, shift=0.0),
        "gate and up as the two halves of what holds them in turn": gpt_oss(run, halves=True),
    }
    for says, values in expected.items():
        found = saying(other_form(case), says).values
        np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=says)
    assert len(list(other_form(case))) == len(expected) + 1  # and their biases


# --- one expert ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [-1, 1])
def test_the_weights_of_a_neighbour_are_told_by_the_tokens_of_one_expert(other: int, runs: Runs) -> None:
    run = runs("qwen3_moe")
    x, shares, right = run["ffn_norm"], shares_of(run, "mlp.gate"), replayed(run, "ffn_out")
    counts = np.count_nonzero(shares, axis=0)
    at = int(np.argmax(counts[1:-1])) + 1  # has a neighbour on either side
    assert 0 < counts[at] < len(x)
    instead, own = (expert(run, f"experts.{one}", x) for one in (at + other, at))
    subject = right + shares[:, at : at + 1] * (instead - own)
    says = f"the weights of expert {at + other} in place of those of expert {at}"
    found = saying(one_expert(case_of(run, "ffn_out", subject)), says)
    np.testing.assert_allclose(found.values, subject, rtol=1e-9, atol=1e-12)


# --- the routed ones and the shared one -----------------------------------------------------------------


def shared_part(run: Run, recipe: str) -> F64:
    x = run["ffn_norm"]
    if recipe == "qwen2_moe":
        return expert(run, "shared_expert", x) * sigmoid(x @ run.w("mlp.shared_expert_gate.weight").T)
    return expert(run, "shared_experts", x)


@pytest.mark.parametrize(
    ("recipe", "routed_words"),
    [
        ("qwen2_moe", "the routed experts x 1.5"),
        ("glm4_moe", "a scale of 3.75 on the routed experts"),  # the model's is 2.5
    ],
)
def test_either_part_of_a_mixture_may_have_a_factor(recipe: str, routed_words: str, runs: Runs) -> None:
    run = runs(recipe)
    right, shared = replayed(run, "ffn_out"), shared_part(run, recipe)
    for says, subject in (
        (routed_words, right + 0.5 * (right - shared)),
        ("the shared expert x 1.5", right + 0.5 * shared),
    ):
        found = saying(measured_part(case_of(run, "ffn_out", subject)), says)
        close(found.values, subject)
