"""A token whose experts rounding leaves open may go either way, and must be what that way makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.judge import judge
from apr_falsify.compare.site import ReplaySite
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.choices import MOST, choice_of
from apr_falsify.operators.mixture import MIXTURE
from apr_falsify.operators.replayed import replay_mixture
from apr_falsify.operators.roundoff import Known
from apr_falsify.operators.router import ROUTING
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import make_checkpoint
from tests.unit.helpers import small_geometry
from tests.unit.oracle.requests import request_for

F64 = npt.NDArray[np.float64]
U = 2.0**-24
LAYER, TOKEN = 1, 4
FOUR = small_geometry(
    model_type="qwen3_moe",
    head_dim=4,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    norm_topk_prob=True,
)


def logits(*rows: list[float], sigma: float = 0.0) -> Known:
    value = np.array(rows)
    return Known(value=value, sigma=np.full(value.shape, sigma))


def choices(*row: float, sigma: float = 0.0, **changes: object) -> list[list[int]] | None:
    found = choice_of(logits(list(row), sigma=sigma), None, replace(FOUR, **changes), U)
    others = found.others.get(0, found.chosen)
    return None if others is None else [sorted(each) for each in others.tolist()]


def test_a_token_has_one_choice_where_the_edge_is_clear() -> None:
    assert choices(3.0, 1.0, 2.0, 0.0) == [[0, 2]]
    assert choices(3.0, 3.0, 2.0, 0.0) == [[0, 1]]  # who of the two is first changes nothing
    assert choices(1.0, 1.0, 1.0, 1.0, experts_per_token=4) == [[0, 1, 2, 3]]


def test_equal_logits_at_the_edge_leave_both_open() -> None:
    assert choices(3.0, 1.0, 1.0, 0.0) == [[0, 1], [0, 2]]
    assert choices(3.0, 1.0, 1.0, 1.0) == [[0, 1], [0, 2], [0, 3]]
    assert choices(1.0, 1.0, 1.0, 0.0) == [[0, 1], [0, 2], [1, 2]]


def test_how_near_is_near_grows_with_what_the_logits_carry() -> None:
    assert choices(3.0, 1.001, 1.0, 0.0) == [[0, 1]]
    assert choices(3.0, 1.001, 1.0, 0.0, sigma=1e-4) == [[0, 1], [0, 2]]


def test_saturated_sigmoids_tie_although_their_logits_do_not() -> None:
    sigmoid = {"router_scoring": "sigmoid"}
    assert choices(30.0, 40.0, 50.0, 0.0, **sigmoid) == [[0, 1], [0, 2], [1, 2]]
    assert choices(3.0, 4.0, 5.0, 0.0, **sigmoid) == [[1, 2]]


def test_a_tie_of_groups_leaves_the_experts_of_either_open() -> None:
    grouped = {"expert_groups": 2, "expert_groups_chosen": 1, "router_scoring": "sigmoid"}
    assert choices(1.0, 0.5, 1.0, 0.0, **grouped) == [[0, 1], [2, 3]]
    assert choices(1.1, 0.5, 1.0, 0.0, **grouped) == [[0, 1]]


def test_too_many_choices_are_not_told_apart() -> None:
    many = replace(FOUR, experts=16, experts_per_token=8)
    found = choice_of(logits([1.0] * 16), None, many, U)
    assert found.others == {0: None}
    few = choice_of(logits([1.0] * 8 + [0.0] * 8), None, replace(many, experts_per_token=2), U).others[0]
    assert few is not None
    assert len(few) == 28 <= MOST


# --- a run that went the other way ------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A mixture in which two experts of one layer have the same row of the router."""
    path: Path = make_checkpoint(tmp_path_factory.mktemp("tie"), "qwen3_moe")
    return open_model(path)


@pytest.fixture(scope="module")
def trace(model: Model) -> Trace:
    return capture(model, request_for(model, tokens=9), MemorySink())


def stage(trace: Trace, name: str) -> F64:
    return trace.stages[LAYER, name].data.astype(np.float64)


def tied(trace: Trace) -> F64:
    """Return the logits with the k-th and the next expert of one token exactly alike."""
    values = stage(trace, "router_logits").copy()
    order = np.argsort(-values[TOKEN])
    values[TOKEN, order[2]] = values[TOKEN, order[1]]
    return values


def other_way(trace: Trace) -> F64:
    """Return the same, the third expert above the second by so little that f32 does not show it."""
    values = tied(trace)
    values[TOKEN, np.argsort(-stage(trace, "router_logits")[TOKEN])[2]] += 1e-12
    return values


def replayed(model: Model, operator: object, inputs: dict[str, F64], captured: F64 | None) -> tuple[F64, F64]:
    place = ReplaySite(weights=model.weights, geometry=model.geometry, layer=LAYER, tokens=())
    place.captured = captured
    known = {name: Known(value=value) for name, value in inputs.items()}
    values, sigma = replay_mixture(operator, known, place, (PLAIN,), U)
    return values[0], sigma


def test_the_weights_of_either_choice_are_right_and_those_of_no_choice_are_not(
    model: Model, trace: Trace
) -> None:
    first, second = (
        replayed(model, ROUTING, {"router_logits": values}, None)[0]
        for values in (tied(trace), other_way(trace))
    )
    assert set(np.flatnonzero(first[TOKEN])) != set(np.flatnonzero(second[TOKEN]))
    for captured in (first, second):
        values, sigma = replayed(model, ROUTING, {"router_logits": tied(trace)}, captured)
        assert (np.abs(values - captured) <= 8 * sigma).all()
        assert sigma.max() < 1e-5
    wrong = second.copy()
    wrong[TOKEN] *= 1.001
    values, sigma = replayed(model, ROUTING, {"router_logits": tied(trace)}, wrong)
    assert (np.abs(values - wrong) > 8 * sigma)[TOKEN].any()


def test_an_output_of_either_choice_is_right_and_one_of_no_choice_is_not(model: Model, trace: Trace) -> None:
    x = stage(trace, "ffn_norm")

    def output(values: F64) -> F64:
        weights, _ = replayed(model, ROUTING, {"router_logits": values}, None)
        return replayed(model, MIXTURE, {"ffn_norm": x, "router_weights": weights}, None)[0]

    inputs = {"ffn_norm": x, "router_logits": tied(trace)}
    first, second = output(tied(trace)), output(other_way(trace))
    assert np.linalg.norm(first[TOKEN] - second[TOKEN]) > 0.1 * np.linalg.norm(first[TOKEN])
    for captured in (first, second):
        values, sigma = replayed(model, MIXTURE, inputs, captured)
        assert (np.abs(values - captured) <= 8 * sigma).all()
    between = (first + second) / 2
    values, sigma = replayed(model, MIXTURE, inputs, between)
    assert (np.abs(values - between) > 8 * sigma)[TOKEN].any()
    alone, sigma = replayed(model, MIXTURE, inputs, None)  # where the run does not show it, nothing is said
    assert (sigma[TOKEN] > np.abs(alone[TOKEN])).all()


def test_every_token_is_judged_with_its_own_routing(model: Model, trace: Trace) -> None:
    """A run that routed one token elsewhere is wrong in its routing, and right in what it then computed."""
    weights = stage(trace, "router_weights").copy()
    weights[TOKEN] = np.roll(weights[TOKEN], 1)
    x = stage(trace, "ffn_norm")
    output, _ = replayed(model, MIXTURE, {"ffn_norm": x, "router_weights": weights}, None)
    changed = {"router_weights": weights, "ffn_out": output}
    stages = {
        key: StageArray(data=changed[key.stage].astype(np.float32))
        if key.layer == LAYER and key.stage in changed
        else array
        for key, array in trace.stages.items()
    }
    keys = [Key(LAYER, name) for name in changed]
    judged = judge(replace(trace, stages=stages), model.weights, keys)
    assert [key.stage for key, entry in judged.items() if entry.in_error] == ["router_weights"]
