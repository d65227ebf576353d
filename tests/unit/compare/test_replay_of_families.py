"""Every family's correct runs are within their floor, and what is special in a family is located."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apr_falsify.compare.bisection import FindingType
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import RECIPES, make_checkpoint
from tests.sampling import in_turn, one_in
from tests.unit.oracle.requests import request_for

pytestmark = pytest.mark.bare

NEW = [
    name for name, recipe in RECIPES.items() if recipe.family not in ("qwen2", "llama", "qwen3", "mistral")
]
FORMATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Model]:
    class Made(dict[tuple[str, str], Model]):
        def __missing__(self, key: tuple[str, str]) -> Model:
            directory: Path = tmp_path_factory.mktemp(key[0])
            self[key] = open_model(make_checkpoint(directory, key[0], FORMATS[key[1]]))
            return self[key]

    return Made()


def judged(trace: Trace, model: Model) -> dict[Key, Judged]:
    return judge(trace, model.weights, list(trace.stages))


def excesses(trace: Trace, model: Model) -> dict[Key, float]:
    found = judged(trace, model)
    assert all(entry.missing is None and entry.fit is not None for entry in found.values())
    return {key: entry.fit.excess for key, entry in found.items() if entry.fit is not None}


@pytest.mark.parametrize(("name", "tokens", "dtype"), in_turn(one_in(2, NEW), [2, 33], list(FORMATS)))
def test_the_oracles_own_run_is_within_its_floor(
    name: str, tokens: int, dtype: str, models: dict[tuple[str, str], Model]
) -> None:
    model = models[name, dtype]
    request = request_for(model, tokens=tokens)
    found = excesses(capture(model, request, MemorySink(), dtype=dtype), model)

    assert set(found) == set(request.keys(model.geometry))
    assert {key: excess for key, excess in found.items() if excess >= 1} == {}


@pytest.mark.parametrize("name", one_in(2, NEW, start=1))
def test_the_embedded_runtimes_run_is_within_its_floor(
    name: str, models: dict[tuple[str, str], Model]
) -> None:
    model = models[name, "f32"]
    found = excesses(embedded.capture(model, request_for(model, tokens=13), MemorySink()), model)

    assert {key: excess for key, excess in found.items() if excess >= 1} == {}


WRONG: dict[str, tuple[str, str, dict[str, object]]] = {
    "no cap on the scores": ("gemma2", "attn_scores", {"attn_softcap": None}),
    "no cap on the logits": ("gemma3-capped-pattern", "lm_head", {"final_softcap": None}),
    "embedding not scaled": ("gemma2", "embedding", {"embed_scale": 1.0}),
    "scores scaled with 1/sqrt(D)": ("gemma3", "attn_scores", {"attn_scales": ()}),
    "window on no layer": ("gemma2", "attn_softmax", {"windows": (None, None, None)}),
    "weights of experts not normalised": ("qwen3_moe", "moe_router", {"norm_topk_prob": False}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_constant_that_is_wrong_is_seen_where_it_is_used(
    fault: str, models: dict[tuple[str, str], Model]
) -> None:
    name, stage, changes = WRONG[fault]
    model = models[name, "f32"]
    geometry = replace(model.geometry, **changes)
    other = replace(model, geometry=geometry, weights=replace(model.weights, geometry=geometry))
    trace = embedded.capture(other, request_for(other, tokens=13), MemorySink())

    found = judged(replace(trace, geometry=model.geometry), model)

    wrong = {key[1] for key, entry in found.items() if entry.in_error}
    assert stage in wrong
    assert wrong <= {stage, "ffn_out", "router_weights"}  # of the routing, what apr keeps is the last token's


@pytest.mark.parametrize("name", one_in(3, NEW))
def test_one_wrong_channel_is_seen_in_every_stage(name: str, models: dict[tuple[str, str], Model]) -> None:
    model = models[name, "f32"]
    trace = capture(model, request_for(model, tokens=13), MemorySink())

    for key, array in trace.stages.items():
        data = array.data.copy()
        at = np.unravel_index(np.argmax(np.abs(data)), data.shape)
        data[at] = data[at] * 1.01 + (1 if key[1] == "moe_router_indices" else 0)
        broken = replace(trace, stages={**trace.stages, key: StageArray(data=data, layout=array.layout)})
        (entry,) = judge(broken, model.weights, [key]).values()
        assert entry.in_error, key


@pytest.mark.parametrize(
    "name", one_in(2, ["phi3-longrope-partial-window", "gpt2", "gemma3", "qwen3_moe-dense-layer-window"])
)
def test_a_wrong_channel_is_a_source_at_its_stage_and_explained_or_not_never_a_crash(
    name: str, models: dict[tuple[str, str], Model]
) -> None:
    model = models[name, "f32"]
    request = request_for(model, tokens=9)
    oracle = capture(model, request, MemorySink())
    sound = embedded.capture(model, request, MemorySink())
    assert bisect(oracle, sound, weights=model.weights).findings == ()

    for key in [key for key in sound.stages if key[0] == 0]:
        data = sound.stages[key].data.copy()
        data[..., 1] = data[..., 1] * 1.5 + 0.1
        stages = {**sound.stages, key: StageArray(data=data, layout=())}
        found = bisect(oracle, replace(sound, stages=stages), weights=model.weights, layers=[0])
        assert any(key[1] in each.stages for each in found.findings if each.type is FindingType.SOURCE), key


def test_experts_that_are_equally_good_may_be_chosen_in_either_order(
    models: dict[tuple[str, str], Model],
) -> None:
    model = models["qwen3_moe", "f32"]
    router = model.weights.tensor("router", 0)
    rows = np.array(router.rows(0, router.shape[0]))
    rows[1:] = rows[0]
    tied = replace(router, data=rows)
    weights = replace(model.weights, tensors={**model.weights.tensors, router.name: tied})
    trace = embedded.capture(replace(model, weights=weights), request_for(model), MemorySink())
    key: Key = Key(0, "moe_router_indices")
    swapped = trace.stages[key].data[::-1].copy()
    other = replace(trace, stages={**trace.stages, key: StageArray(data=swapped, layout=())})

    assert not judge(other, weights, [key])[key].in_error
