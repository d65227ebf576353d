"""Routers against transformers' own, in f64: which experts are chosen, and with which weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.dots1.configuration_dots1 import Dots1Config
from transformers.models.dots1.modeling_dots1 import Dots1TopkRouter
from transformers.models.ernie4_5_moe.configuration_ernie4_5_moe import Ernie4_5_MoeConfig
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.minimax_m2.configuration_minimax_m2 import MiniMaxM2Config
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from apr_falsify.errors import GeometryError
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.routing import by_expert, chosen_of, chosen_weights, scores_of
from tests.unit.helpers import small_geometry

WIDTH, EXPERTS = 16, 12


def geometry(**changes: Any) -> Geometry:
    plain = small_geometry(
        model_type="qwen3_moe",
        head_dim=4,
        num_experts=EXPERTS,
        num_experts_per_tok=3,
        moe_intermediate_size=8,
        norm_topk_prob=False,
    )
    return replace(plain, **changes)


def qwen3(norm: bool) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    sizes = {"hidden_size": WIDTH, "num_experts": EXPERTS, "num_experts_per_tok": 3}
    return Qwen3MoeTopKRouter(Qwen3MoeConfig(**sizes, norm_topk_prob=norm)), ()


def dots1(groups: int, chosen: int, norm: bool) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    config = Dots1Config(
        hidden_size=WIDTH,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        n_group=groups,
        topk_group=chosen,
        norm_topk_prob=norm,
        routed_scaling_factor=2.5,
    )
    return Dots1TopkRouter(config), ()


def ernie() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    return Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(hidden_size=WIDTH, moe_num_experts=EXPERTS, moe_k=3)), ()


def minimax(correction: torch.Tensor) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    config = MiniMaxM2Config(hidden_size=WIDTH, num_local_experts=EXPERTS, num_experts_per_tok=3)
    return MiniMaxM2TopKRouter(config), (correction,)


CORRECTION = 0.3 * torch.sin(torch.arange(EXPERTS, dtype=torch.float32) * 2.4)
GROUPED = {
    "router_scoring": "sigmoid",
    "router_corrected": True,
    "expert_groups": 4,
    "expert_groups_chosen": 2,
    "group_best": 2,
    "routed_scale": 2.5,
}
CASES: Mapping[str, tuple[Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]], dict[str, Any]]] = {
    "softmax": (lambda: qwen3(norm=False), {}),
    "softmax over the chosen": (lambda: qwen3(norm=True), {"norm_topk_prob": True}),
    "groups": (lambda: dots1(4, 2, norm=True), {**GROUPED, "norm_topk_prob": True}),
    "groups, weights as they are": (lambda: dots1(4, 2, norm=False), GROUPED),
    "one group": (
        lambda: dots1(1, 1, norm=True),
        {**GROUPED, "expert_groups": 1, "expert_groups_chosen": 1, "norm_topk_prob": True},
    ),
    "corrected softmax": (ernie, {"router_corrected": True, "norm_topk_prob": True}),
    "corrected sigmoid": (
        lambda: minimax(CORRECTION),
        {"router_scoring": "sigmoid", "router_corrected": True, "norm_topk_prob": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_router_is_transformers_own(case: str) -> None:
    make, changes = CASES[case]
    module, further = make()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        for name, held in (*module.named_parameters(), *module.named_buffers()):
            if "correction" in name:
                held.copy_(CORRECTION)
    x = torch.randn(200, WIDTH, generator=generator)
    with torch.no_grad():
        logits, weights, experts = module(x, *further)
    expected = np.zeros((200, EXPERTS))
    np.put_along_axis(expected, experts.numpy(), weights.double().numpy(), axis=-1)

    g = geometry(**changes)
    scores = scores_of(logits.double().numpy(), g)
    chosen = chosen_of(scores, CORRECTION.numpy() if g.router_corrected else None, g)
    found = by_expert(chosen, chosen_weights(scores, chosen, g), EXPERTS)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-9)
    assert (np.diff(np.take_along_axis(scores, chosen, -1), axis=-1) <= 0).all()  # the largest score first


def test_groups_and_the_correction_decide_which_experts_are_chosen() -> None:
    """By hand: four experts in two groups; the best expert of all lies in the group that is not taken."""
    scores = np.array([[0.9, 0.1, 0.6, 0.5]])
    g = geometry(
        experts=4, experts_per_token=1, expert_groups=2, expert_groups_chosen=1, group_best=2
    )  # group sums 1.0 and 1.1
    assert chosen_of(scores, None, g).tolist() == [[2]]
    assert chosen_of(scores, None, replace(g, group_best=1)).tolist() == [[0]]
    assert chosen_of(scores, None, replace(g, expert_groups=1)).tolist() == [[0]]
    raised = np.array([0.0, 0.0, 0.0, 0.2])
    assert chosen_of(scores, raised, g).tolist() == [[3]]
    assert chosen_weights(scores, np.array([[3]]), g).tolist() == [[0.5]]  # without the correction


def test_an_expert_that_is_named_twice_counts_twice() -> None:
    found = by_expert(np.array([[2, 2], [0, 1]]), np.array([[0.25, 0.5], [1.0, 2.0]]), 3)
    assert found.tolist() == [[0.0, 0.0, 0.75], [1.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expert_groups": 5}, "1 of 5 groups of 12 experts"),
        ({"expert_groups": 2, "expert_groups_chosen": 3}, "3 of 2 groups"),
        ({"expert_groups": 6}, "3 experts of 1 groups of 2"),
        ({"expert_groups": 4, "expert_groups_chosen": 2, "group_best": 4}, "ranked by the best 4"),
        ({"router_scoring": "tanh"}, "'tanh' has no formula"),
        ({"routed_scale": 0.0}, "not above 0"),
    ],
)
def test_a_router_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        geometry(**changes)
