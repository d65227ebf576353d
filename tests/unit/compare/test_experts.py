"""Mixtures of experts, replayed by plain loops; what rounding may exchange, and what it may not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.causes import explain
from apr_falsify.compare.judge import judge, store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.site import ReplaySite
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation
from apr_falsify.operators import choices, mixture, replayed, router
from apr_falsify.operators.norms import norm_variance
from apr_falsify.operators.replayed import replay_mixture
from apr_falsify.operators.roundoff import LIMIT, Known
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import make_checkpoint
from tests.unit.helpers import small_geometry
from tests.unit.oracle.requests import request_for

F64 = npt.NDArray[np.float64]
U = 2.0**-24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(make_checkpoint(tmp_path_factory.mktemp("moe"), "qwen3_moe"))


@pytest.fixture(scope="module")
def trace(model: Model) -> Trace:
    return capture(model, request_for(model, tokens=11), MemorySink())


def site(model: Model, **more: object) -> ReplaySite:
    return ReplaySite(weights=model.weights, geometry=model.geometry, layer=1, tokens=(), **more)  # type: ignore[arg-type]


def known(values: object, sigma: object = None) -> Known:
    return Known(
        value=np.asarray(values, np.float64), sigma=None if sigma is None else np.asarray(sigma, np.float64)
    )


def stage(trace: Trace, name: str) -> F64:
    return trace.stages[1, name].data.astype(np.float64)


def weight(model: Model, role: str) -> F64:
    tensor = model.weights.tensor(role, 1)
    return tensor.rows(0, tensor.shape[0]).astype(np.float64)


# --- values, by plain loops -----------------------------------------------------------------------


def expert_of(model: Model, x: F64, expert: int) -> F64:
    gate, up = (weight(model, f"expert_{part}.{expert}") @ x for part in ("gate", "up"))
    return weight(model, f"expert_down.{expert}") @ (gate / (1 + np.exp(-gate)) * up)


def mixed_by_hand(model: Model, x: F64) -> tuple[F64, list[int], list[float]]:
    """Return the output for one token, its experts (the best first) and their weights."""
    logits = weight(model, "router") @ x
    odds = np.exp(logits) / np.exp(logits).sum()
    chosen = sorted(range(len(odds)), key=lambda e: -odds[e])[: model.geometry.experts_per_token]
    shares = [odds[e] / sum(odds[c] for c in chosen) for e in chosen]
    return sum(s * expert_of(model, x, e) for s, e in zip(shares, chosen, strict=True)), chosen, shares


def test_every_token_passes_its_own_experts(model: Model, trace: Trace) -> None:
    x = stage(trace, "ffn_norm")
    values, sigma = replay_mixture(mixture.MIXTURE, {"ffn_norm": known(x)}, site(model), (PLAIN,), U)
    expected = np.stack([mixed_by_hand(model, row)[0] for row in x])
    np.testing.assert_allclose(values, expected[None], rtol=1e-10, atol=1e-12)
    assert sigma.shape == expected.shape
    error = np.abs(stage(trace, "ffn_out") - expected) / sigma
    assert 0.01 < np.sqrt(np.mean(error**2)) < 1


def test_the_stages_of_the_last_tokens_experts(model: Model, trace: Trace) -> None:
    x = stage(trace, "ffn_norm")
    output, chosen, shares = mixed_by_hand(model, x[-1])
    inputs = {"ffn_norm": known(x)}
    indices, _ = replay_mixture(router.CHOSEN_EXPERTS, inputs, site(model), (PLAIN,), U)
    assert indices[0].tolist() == chosen
    inputs["moe_router_indices"] = known(chosen)
    last, sigma = replay_mixture(router.EXPERT_WEIGHTS, inputs, site(model), (PLAIN,), U)
    np.testing.assert_allclose(last[0], shares, rtol=1e-10)
    assert (sigma < 1e-4).all()
    inputs["moe_router"] = known(shares)
    found, sigma = replay_mixture(mixture.LAST_MIXTURE, inputs, site(model), (PLAIN,), U)
    np.testing.assert_allclose(found[0], output, rtol=1e-10, atol=1e-12)
    assert (sigma < 1e-4 * np.abs(output).max()).all()


def test_each_rule_has_its_own_values_and_the_first_ones_rounding(model: Model, trace: Trace) -> None:
    f16 = next(rule for rule in RULES[Operation.PROJECTION] if rule.name == "f16")
    inputs = {"ffn_norm": known(stage(trace, "ffn_norm"))}
    both, sigma = replay_mixture(mixture.MIXTURE, inputs, site(model), (PLAIN, f16), U)
    plain, own = replay_mixture(mixture.MIXTURE, inputs, site(model), (PLAIN,), U)
    np.testing.assert_array_equal(both[0], plain[0])
    np.testing.assert_array_equal(sigma, own)
    off = np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0])
    assert 1e-5 < off < 1e-2


def test_what_an_input_carries_widens_the_rounding_by_as_much(model: Model, trace: Trace) -> None:
    """To first order: a thousand times the error of the input is a thousand times that of the output."""
    x = stage(trace, "ffn_norm")

    def sigma(size: float) -> F64:
        carried = known(x, np.full(x.shape, size))
        return replay_mixture(mixture.MIXTURE, {"ffn_norm": carried}, site(model), (PLAIN,), U)[1]

    none, small, large = sigma(0.0), sigma(1e-6), sigma(2e-6)
    assert (small > none).all()
    np.testing.assert_allclose(large**2 - none**2, 4 * (small**2 - none**2), rtol=1e-3)


# --- routing --------------------------------------------------------------------------------------

TWO = small_geometry(
    model_type="qwen3_moe",
    head_dim=4,
    num_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=8,
    decoder_sparse_step=1,
    norm_topk_prob=False,
)


def routed(logits: Known, chosen: list[list[int]], store: float = U) -> Known:
    place = ReplaySite(weights=None, geometry=TWO, layer=0, tokens=())
    return replayed.weights_of(logits, np.array(chosen), place, store)


def test_a_weight_carries_its_own_logits_error_and_that_of_all_others() -> None:
    logits = [[0.0, math.log(3.0)]]  # odds of 1/4 and 3/4
    own = routed(known(logits), [[1]])
    assert own.value[0, 0] == pytest.approx(0.75)
    found = routed(known(logits, [[4 * U, 8 * U]]), [[1]])
    spread = (0.25 * 4) ** 2 + (0.75 * 8) ** 2
    np.testing.assert_allclose(
        (found.sigma**2 - own.sigma**2) / U**2, [[0.75**2 * (64 + 2 * spread)]], rtol=1e-6
    )


def test_a_weight_is_rounded_as_a_softmax_is_and_by_how_far_its_logit_lies_below() -> None:
    best, other = routed(known([[0.0, -3.0]]), [[0]]), routed(known([[0.0, -3.0]]), [[1]])
    share = math.exp(-3) / (1 + math.exp(-3))
    common = norm_variance(np.array([1.0]), 2, U)[0]
    np.testing.assert_allclose(best.sigma**2, [[(1 - share) ** 2 * common]], rtol=1e-9)
    np.testing.assert_allclose(other.sigma**2, [[share**2 * (common + (3 * U) ** 2)]], rtol=1e-9)


def undecided(values: list[float], sigma: float = 0.0, chosen: int = 2) -> list[bool]:
    logits = known([values], np.full((1, len(values)), sigma))
    return choices.exchangeable(logits, chosen, TWO, U)[0].tolist()


def test_logits_that_are_equal_may_change_places() -> None:
    assert undecided([3.0, 5.0, 3.0, 1.0]) == [False, True]
    assert undecided([5.0, 3.0, 1.0, 1.0]) == [False, False]
    assert undecided([5.0, 3.0, 1.0, 1.0], chosen=3) == [False, False, True]
    assert undecided([5.0, 5.0], chosen=2) == [True]  # where all are chosen, none stands beyond


@pytest.mark.parametrize(("sigma", "near"), [(0.1767, False), (0.1769, True)])
def test_logits_within_eight_sigmas_of_both_may_change_places(sigma: float, near: bool) -> None:
    # 8 * sqrt(sigma^2 + sigma^2) = 2 at sigma = 0.17678
    assert undecided([5.0, 3.0, -90.0], sigma) == [near, False]


@pytest.mark.parametrize(("roundings", "near"), [(31.9, True), (32.2, False)])
def test_probabilities_are_rounded_by_four_and_by_how_far_they_lie_below(
    roundings: float, near: bool
) -> None:
    assert undecided([0.0, -roundings * U, -50.0]) == [near, False]
    assert undecided([100.0, 0.0, -roundings / 4 * 104 * U, -50.0], chosen=3) == [False, near, False]


def test_an_expert_whose_probability_f32_loses_is_like_any_other() -> None:
    def lost(*logits: float) -> list[bool]:
        return router._vanished(known([logits]), 2)[0].tolist()

    edge = 125 * math.log(2)  # twice the smallest normal f32 is 2**-125
    assert lost(0.0, -edge + 0.01, -edge - 50) == [False, False]
    assert lost(0.0, -edge - 0.01, -edge - 50) == [False, True]
    assert lost(0.0, 0.0, -edge - 50) == [False, False]
    assert lost(0.0, -edge + math.log(2) - 0.01, 0.0) == [False, False]
    tops = [0.0, 0.0, -edge + math.log(2) - 0.01, -900.0]
    assert router._vanished(known([tops]), 3)[0].tolist() == [False, False, True]


def test_experts_that_may_have_changed_places_have_no_known_index(model: Model, trace: Trace) -> None:
    x = stage(trace, "ffn_norm")
    inputs = {"ffn_norm": known(x)}
    _, sure = replay_mixture(router.CHOSEN_EXPERTS, inputs, site(model), (PLAIN,), U)
    assert (sure < 1e-6).all()
    unsure = {"ffn_norm": known(x, np.full(x.shape, 10.0))}
    _, sigma = replay_mixture(router.CHOSEN_EXPERTS, unsure, site(model), (PLAIN,), U)
    np.testing.assert_allclose(sigma, model.geometry.experts)


def test_where_a_token_may_have_gone_to_another_expert_its_output_says_nothing(
    model: Model, trace: Trace
) -> None:
    x = stage(trace, "ffn_norm")
    carried = np.zeros(x.shape)
    carried[4] = 10.0
    values, sigma = replay_mixture(mixture.MIXTURE, {"ffn_norm": known(x, carried)}, site(model), (PLAIN,), U)
    size = np.sqrt(np.mean(values[0, 4] ** 2))
    np.testing.assert_allclose(sigma[4], np.abs(values[0, 4]) + size, rtol=1e-9)
    assert (np.delete(sigma, 4, axis=0) < 1e-4 * size).all()


@pytest.mark.parametrize(
    ("reversed_stages", "wrong"),
    [
        (("moe_router", "moe_router_indices"), set()),
        (("moe_router_indices",), {"moe_router_indices", "moe_router", "moe_ffn_out"}),
        (("moe_router",), {"moe_router", "moe_ffn_out"}),
    ],
    ids=["both", "the experts", "the weights"],
)
def test_a_run_may_list_its_experts_in_an_order_of_its_own(
    model: Model, trace: Trace, reversed_stages: tuple[str, ...], wrong: set[str]
) -> None:
    changed = {
        Key(1, name): StageArray(data=np.ascontiguousarray(trace.stages[1, name].data[::-1]))
        for name in reversed_stages
    }
    listed = replace(trace, stages={**trace.stages, **changed})
    keys = [Key(1, name) for name in ("moe_router", "moe_router_indices", "moe_ffn_out")]
    found = judge(listed, model.weights, keys)
    assert {key.stage for key, entry in found.items() if entry.in_error} == wrong


@pytest.mark.parametrize("stage_name", ["ffn_out", "moe_ffn_out", "moe_router"])
def test_a_factor_of_a_mixture_is_named_and_what_needs_one_product_is_not_tried(
    model: Model, trace: Trace, stage_name: str
) -> None:
    replayer = Replayer(trace, model.weights, store_of(trace))
    cause = explain(replayer, Key(1, stage_name), PLAIN, 2 * stage(trace, stage_name), LIMIT)
    assert cause is not None
    assert (cause.name, cause.fits) == ("factor", True)
    assert cause.sentence.startswith("x 2 fits")


def test_the_model_of_these_tests_is_one(tmp_path: Path, model: Model) -> None:
    assert (model.geometry.experts, model.geometry.experts_per_token) == (6, 2)
    assert model.geometry.norm_topk_prob
