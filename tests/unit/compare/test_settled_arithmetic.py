"""Stages of one kind share an arithmetic: what becomes of one that was computed in another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.judge import Judged, judge
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.subjects.embedded import capture
from apr_falsify.subjects.kernel import arithmetic_named
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.support import DATA

NAMES = ("attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_silu")
UPS: tuple[Key, ...] = (Key(0, "ffn_up"), Key(1, "ffn_up"), Key(2, "ffn_up"))
ODD: Key = Key(1, "ffn_up")
B32, B256 = "q8_0 blocks of 32", "q8 blocks of 256"


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(DATA / "apr-tiny-qwen2" / "base-q4k.gguf")


def run(model: Model, arithmetic: str) -> Trace:
    request = Request(tokens=(274, 272, 332, 13, 20, 33), layers=range(3), stages=NAMES)
    return capture(model, request, MemorySink(), arithmetic=arithmetic_named(f"f32; {arithmetic}"))


def odd_one(model: Model, factor: float = 1.0) -> dict[Key, Judged]:
    """Judge ffn_up of a run in blocks of 32 that is said to be one of 256, and whose layer 1 is plain."""
    trace = run(model, B32)
    weight = model.weights.tensor("up", 1)
    exact = trace.stages[1, "ffn_norm"].data.astype(np.float64) @ weight.rows(0, weight.shape[0]).T
    plain = StageArray(data=np.asarray(factor * exact, np.float32))
    trace = replace(trace, stages={**trace.stages, ODD: plain})
    return judge(trace, model.weights, UPS, f"f32; {B256}")


def test_a_stage_in_another_arithmetic_than_its_kind_is_judged_by_its_own(model: Model) -> None:
    judged = odd_one(model)
    found = {key: (entry.fit.rule.name, entry.in_error) for key, entry in judged.items() if entry.fit}
    assert found == {key: ("f32" if key == ODD else B32, False) for key in UPS}
    # That of its kind was tried on it too, although the plain one had explained it.
    tried = {fit.rule.name: fit for fit in judged[ODD].fits}
    assert tried.keys() == {"f32", B256, B32}
    assert not tried[B32].explains


def test_a_stage_that_none_explains_is_in_error_by_that_of_its_kind(model: Model) -> None:
    entry = odd_one(model, factor=1.5)[ODD]
    assert entry.fit is not None
    assert (entry.fit.rule.name, entry.in_error, entry.simulated) == (B32, True, False)


def test_where_none_explains_any_the_expected_one_is_allowed_some_of_its_own_error(model: Model) -> None:
    """Noise of a thousandth is less than blocks of 8 bits change themselves; noise of a half is more."""
    for share, wrong in ((1e-3, False), (0.5, True)):
        trace = run(model, B256)
        stages = dict(trace.stages)
        for number, key in enumerate(UPS):
            noise = np.random.default_rng(number).normal(1, share, stages[key].data.shape)
            stages[key] = StageArray(data=np.asarray(stages[key].data * noise, np.float32))
        judged = judge(replace(trace, stages=stages), model.weights, UPS, f"f32; {B256}")
        found = [(entry.fit.rule.name, entry.in_error) for entry in judged.values() if entry.fit]
        assert found == [(B256, wrong)] * 3
        assert all(entry.simulated for entry in judged.values())
