"""What ports get wrong in mixtures is located and named, whether they show their routing or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.replay import Replay, Replayer
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.routing import by_expert
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import make_checkpoint
from tests.unit.oracle.requests import request_for

LAST = ("moe_router", "moe_router_indices", "moe_ffn_out")
ROUTING = ("router_logits", "router_weights")
TOKENS = 12

FAULTS: Mapping[str, tuple[str, dict[str, Any], str, str]] = {
    "not made to sum to 1": ("qwen3_moe", {"norm_topk_prob": False}, "top-k-normalisation", "not made to"),
    "made to sum to 1": (
        "qwen2_moe",
        {"norm_topk_prob": True},
        "top-k-normalisation",
        "chosen experts alone",
    ),
    "a sigmoid": ("qwen2_moe", {"router_scoring": "sigmoid"}, "router-scoring", "a sigmoid of"),
    "one expert too few": ("qwen3_moe", {"experts_per_token": 1}, "expert-count", "1 experts"),
    "one expert too many": ("qwen2_moe", {"experts_per_token": 3}, "expert-count", "3 experts"),
    "a softmax": ("glm4_moe", {"router_scoring": "softmax"}, "router-scoring", "a softmax of"),
    "the scale left out": ("glm4_moe", {"routed_scale": 1.0}, "routed-scale", "scale 2.5 of the routed"),
    "another scale": ("glm4_moe", {"routed_scale": 1.8}, "routed-scale", "a scale of 1.8 on the routed"),
    "no correction": ("minimax_m2", {"router_corrected": False}, "router-correction", "chosen without"),
    "no groups": (
        "dots1",
        {"expert_groups": 1, "expert_groups_chosen": 1, "group_best": 1},
        "expert-groups",
        "from all groups",
    ),
    "groups by their best": ("dots1", {"group_best": 1}, "expert-groups", "ranked by their best 1"),
}
"""Fault of the routing -> recipe, how the port's geometry differs, the cause, and some of its words."""

SHARED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "dropped": ("qwen2_moe", {"shared_intermediate": 0, "shared_gated": False}, "left out"),
    "its gate left out": ("qwen2_moe", {"shared_gated": False}, "without the sigmoid"),
    "dropped where none is gated": ("ernie4_5_moe", {"shared_intermediate": 0}, "left out"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    class Made(dict[str, Model]):
        def __missing__(self, recipe: str) -> Model:
            self[recipe] = open_model(make_checkpoint(tmp_path_factory.mktemp(recipe), recipe, layers=2))
            return self[recipe]

    return Made()


def run(model: Model, **changes: Any) -> Trace:
    """Return what a port of another geometry computes of the mixture in the last layer."""
    geometry = replace(model.geometry, **changes)
    other = replace(model, geometry=geometry, weights=replace(model.weights, geometry=geometry))
    request = request_for(
        other, tokens=TOKENS, layers=range(1, 2), stages=("ffn_norm", *ROUTING, *LAST, "ffn_out")
    )
    return replace(capture(other, request, MemorySink()), geometry=model.geometry)


def without(trace: Trace, *names: str) -> Trace:
    return replace(
        trace, stages={key: array for key, array in trace.stages.items() if key.stage not in names}
    )


def told(model: Model, subject: Trace) -> Bisection:
    found = bisect(run(model), subject, weights=model.weights)
    assert found.breakdowns == ()
    return found


def named(found: Bisection) -> dict[Key, tuple[str, str]]:
    return {
        Key(each.layer, name): each.cause or ("", each.explanation)
        for each in found.sources
        for name in each.stages
    }


def chosen_otherwise(fault: str) -> bool:
    return FAULTS[fault][2] in ("expert-count", "router-correction", "expert-groups")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_routing_is_named_where_every_token_shows_it(
    fault: str, models: dict[str, Model]
) -> None:
    recipe, changes, cause, words = FAULTS[fault]
    found = told(models[recipe], without(run(models[recipe], **changes), *LAST))
    assert {key.stage for key in named(found)} == {"router_weights"}
    ((name, says),) = named(found).values()
    assert (name, words in says) == (cause, True), says
    assert found.kind is Kind.LOCALISED


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_routing_is_named_where_only_the_output_shows_it(
    fault: str, models: dict[str, Model]
) -> None:
    recipe, changes, cause, words = FAULTS[fault]
    found = told(models[recipe], without(run(models[recipe], **changes), *LAST, *ROUTING))
    assert {key.stage for key in named(found)} == {"ffn_out"}
    ((name, says),) = named(found).values()
    assert (name, words in says) == (cause, True), says


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not chosen_otherwise(fault)])
def test_weights_that_are_made_otherwise_are_told_once(fault: str, models: dict[str, Model]) -> None:
    """The last token's weights are those of every token too; the output is right by them."""
    recipe, changes, cause, words = FAULTS[fault]
    found = told(models[recipe], run(models[recipe], **changes))
    assert {key.stage for key in named(found)} == {"moe_router"}
    ((name, says),) = named(found).values()
    assert (name, words in says) == (cause, True), says


@pytest.mark.parametrize("fault", SHARED)
@pytest.mark.parametrize("hidden", [(), (*LAST, *ROUTING)], ids=["all", "the output"])
def test_a_fault_of_the_shared_expert_is_named(
    fault: str, hidden: tuple[str, ...], models: dict[str, Model]
) -> None:
    recipe, changes, words = SHARED[fault]
    found = told(models[recipe], without(run(models[recipe], **changes), *hidden))
    assert {key.stage for key in named(found)} == {"ffn_out"}  # of which moe_ffn_out is the last row
    ((name, says),) = named(found).values()
    assert (name, words in says) == ("shared-expert", True), says


def changed(trace: Trace, stage: str, change: Callable[[np.ndarray], np.ndarray]) -> Trace:
    key = Key(1, stage)
    data = change(trace.stages[key].data.astype(np.float64)).astype(np.float32)
    return replace(trace, stages={**trace.stages, key: StageArray(data=data)})


def test_weights_that_keep_the_correction_are_named(models: dict[str, Model]) -> None:
    model = models["minimax_m2"]
    sound = without(run(model), *LAST, "ffn_out")
    correction = model.weights.vector("router_correction", 1).astype(np.float64)
    logits = sound.stages[1, "router_logits"].data.astype(np.float64)

    def kept(weights: np.ndarray) -> np.ndarray:
        chosen = np.argsort(weights == 0, axis=-1, kind="stable")[:, : model.geometry.experts_per_token]
        raised = np.take_along_axis(1 / (1 + np.exp(-logits)) + correction, chosen, axis=-1)
        return by_expert(chosen, raised / raised.sum(axis=-1, keepdims=True), model.geometry.experts)

    found = told(model, changed(sound, "router_weights", kept))
    ((name, says),) = named(found).values()
    assert (name, "keep the correction" in says) == ("router-correction", True), says


def test_the_shared_expert_in_another_measure_is_named(models: dict[str, Model]) -> None:
    model = models["ernie4_5_moe"]
    sound, routed = run(model), run(model, shared_intermediate=0)
    part = routed.stages[1, "ffn_out"].data.astype(np.float64)
    found = told(model, without(changed(sound, "ffn_out", lambda y: part + 0.3 * (y - part)), *LAST))
    ((name, says),) = named(found).values()
    assert (name, says) == ("shared-expert", "the shared expert x 0.3")


@pytest.mark.parametrize(
    ("factor", "says"), [(0.0, "expert {} left out"), (0.5, "expert {} x 0.5")], ids=["left out", "halved"]
)
def test_one_expert_that_is_wrong_is_named(factor: float, says: str, models: dict[str, Model]) -> None:
    model = models["qwen3_moe"]
    sound = without(run(model), *LAST)
    weights = sound.stages[1, "router_weights"].data
    given = (weights != 0).sum(axis=0)
    expert = int(np.argmax(np.where(given < TOKENS, given, 0)))
    alone = np.zeros_like(weights)
    alone[:, expert] = weights[:, expert]
    routed = {Key(1, "router_weights"): StageArray(data=alone)}
    part = experts_part(model, replace(sound, stages={**sound.stages, **routed}))
    found = told(model, changed(sound, "ffn_out", lambda y: y + (factor - 1) * part))
    ((name, words),) = named(found).values()
    assert (name, words) == ("one-expert", says.format(expert))


def experts_part(model: Model, trace: Trace) -> np.ndarray:
    """Return what the experts make by the weights of ``trace``."""
    found = Replayer(trace, model.weights, 2.0**-24).replay(Key(1, "ffn_out"), (PLAIN,))
    assert isinstance(found, Replay)
    return found.values[0]


@pytest.mark.parametrize(
    "recipe", ["qwen3_moe", "qwen2_moe", "glm4_moe", "dots1", "minimax_m2", "ernie4_5_moe"]
)
def test_a_right_port_that_shows_one_output_of_all_tokens_is_consistent(
    recipe: str, models: dict[str, Model]
) -> None:
    found = told(models[recipe], without(run(models[recipe]), *LAST, *ROUTING))
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


def test_weights_that_are_shown_before_their_scale_are_no_fault(models: dict[str, Model]) -> None:
    """The port multiplies the sum of its experts with the scale instead."""
    model = models["glm4_moe"]
    sound = run(model)
    shown = {
        Key(1, name): StageArray(data=sound.stages[1, name].data / np.float32(model.geometry.routed_scale))
        for name in ("router_weights", "moe_router")
    }
    found = told(model, replace(sound, stages={**sound.stages, **shown}))
    assert found.kind is Kind.CONSISTENT
    assert [each.type for each in found.findings] == [FindingType.RECORDING]
    assert "before the scale of the routed ones" in found.findings[0].explanation
