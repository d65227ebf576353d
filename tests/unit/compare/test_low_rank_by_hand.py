"""What a merged adapter leaves in products, and what only looks like one: matrices of known rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.bisection import FindingType, Kind
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.low_rank import _rank_of, merged_weights
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.compare.wrong_stages import F64
from tests.unit.helpers import small_model

TOKENS, IN, OUT = 12, 10, 9
U = 2.0**-24


def inputs(sizes: F64 | float = 1.0) -> F64:
    return np.asarray(np.random.default_rng(0).standard_normal((TOKENS, IN)) * sizes)


def added(x: F64, rank: int) -> F64:
    """Return x A B, as an adapter of this rank adds it."""
    rng = np.random.default_rng(1)
    return np.asarray(x @ rng.standard_normal((IN, rank)) @ rng.standard_normal((rank, OUT)))


def floors(rows: F64 | float = 1.0) -> F64:
    return np.broadcast_to(1e-6 * np.asarray(rows), (TOKENS, OUT)).copy()


BY_TOKEN = np.logspace(-1, 1, TOKENS)[:, None]


@pytest.mark.parametrize("rows", [1.0, BY_TOKEN], ids=["alike", "by token"])
@pytest.mark.parametrize(("rank", "told"), [(1, 0), (2, 2), (5, 5), (7, 7), (8, 0)])
def test_the_rank_is_told_from_two_on_while_two_directions_are_left(
    rank: int, told: int, rows: F64 | float
) -> None:
    assert _rank_of(added(inputs(), rank), floors(rows), inputs()) == told


def test_inputs_that_span_less_than_the_tokens_leave_less_room() -> None:
    narrow = inputs()
    narrow[:, 4:] = narrow[:, :4] @ np.random.default_rng(2).standard_normal((4, IN - 4))
    assert _rank_of(added(narrow, 2), floors(), narrow) == 2
    assert _rank_of(added(narrow, 3), floors(), narrow) == 0


@pytest.mark.parametrize("rows", [1.0, BY_TOKEN], ids=["alike", "by token"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_two_channels_of_the_input_are_no_adapter_however_large_they_are(
    size: float, rows: F64 | float
) -> None:
    x = inputs(np.where(np.arange(IN) < 2, size, 1.0))
    off = (x[:, :2] / size) @ np.random.default_rng(1).standard_normal((2, OUT))
    assert _rank_of(off, floors(rows), x) == 0


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_a_channel_of_another_size_hides_no_adapter(size: float) -> None:
    x = inputs(np.where(np.arange(IN) < 1, size, 1.0))
    assert _rank_of(added(inputs(), 3), floors(), x) == 3


def test_what_reaches_few_values_or_leaves_some_is_no_adapter() -> None:
    off = added(inputs(), 3)
    few = off.copy()
    few[:3] = 0.0  # a quarter of the tokens
    assert _rank_of(few, floors(), inputs()) == 0
    most = off.copy()
    most[:2] = 0.0
    assert _rank_of(most, floors(), inputs()) == 3
    infinite = off.copy()
    infinite[0, 0] = np.inf
    assert _rank_of(infinite, floors(), inputs()) == 0


# --- of a whole run -----------------------------------------------------------------------------------


def adapted(model: Model, *layers: int) -> Model:
    """Return the model with a matrix of rank 2 added to attention's output in these layers."""
    made = {}
    for layer in layers:
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        tensor, rng = model.weights.tensors[name], np.random.default_rng(layer)
        weight = tensor.rows(0, tensor.shape[0])
        more = 0.1 * rng.standard_normal((len(weight), 2)) @ rng.standard_normal((2, weight.shape[1]))
        made[name] = PlainTensor(name=name, type="f32", data=(weight + more).astype(np.float32))
    return replace(model, weights=replace(model.weights, tensors={**model.weights.tensors, **made}))


def traced(model: Model) -> Trace:
    return capture(
        model, Request(tokens=tuple(range(9)), layers=range(2), stages=tuple(STAGES)), MemorySink()
    )


def judged(model: Model, trace: Trace) -> dict[Key, Judged]:
    return judge(trace, model.weights, list(trace.stages))


@pytest.fixture(scope="module")
def model() -> Model:
    """Two layers, hidden 16."""
    return small_model()


def test_two_layers_are_enough_and_one_is_not(model: Model) -> None:
    both = traced(adapted(model, 0, 1))
    (finding,) = merged_weights(both, model.weights, judged(model, both), None)
    assert finding.explanation.startswith(
        "the weights of o (layers 0, 1) are the checkpoint's with an addition"
    )
    assert "of rank 2" in finding.explanation
    one = traced(adapted(model, 1))
    assert merged_weights(one, model.weights, judged(model, one), None) == []


def test_logits_that_are_wrong_too_are_no_adapter(model: Model) -> None:
    """Those of the last token alone: of one row nothing has a rank."""
    trace = traced(adapted(model, 0, 1))
    key = Key(None, "lm_head")
    array = trace.stages[key]
    wrong = replace(array, data=np.float32(1.1) * array.data)
    trace = replace(trace, stages={**trace.stages, key: wrong})
    found = judged(model, trace)
    assert found[key].in_error
    assert merged_weights(trace, model.weights, found, None) == []


def test_an_adapter_is_told_of_weights_that_are_not_known_to_be_the_subjects(model: Model) -> None:
    """Where they are its own, each of the products is computed wrongly."""
    oracle, subject = traced(model), traced(adapted(model, 0, 1))
    found = bisect(oracle, subject, weights=model.weights)
    assert found.kind is Kind.UNMEASURED
    assert [one.type for one in found.findings] == [FindingType.NOT_THE_SUBJECTS_WEIGHTS]
    own = bisect(oracle, subject, weights=model.weights, subject_weights=model.weights)
    assert {(one.layer, one.stages) for one in own.sources} == {(0, ("attn_out",)), (1, ("attn_out",))}
    assert FindingType.NOT_THE_SUBJECTS_WEIGHTS not in {one.type for one in own.findings}
