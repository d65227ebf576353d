"""What a run is taken to hold its weights in: seen in its first three layers, and believed of all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.judge import judge
from apr_falsify.compare.proof import wrong
from apr_falsify.compare.stored_format import StoredRun, as_stated, in_its_format
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import small_model

F16 = FORMATS["f16"]


def model_of(layers: int) -> Model:
    """Return a model whose weights of q are near the smallest numbers of f16, which rounds them coarsely."""
    model = small_model(num_hidden_layers=layers)
    factors = {"q_proj": 2e-6, "input_layernorm": 1e3}
    tensors = {}
    for name, tensor in model.weights.tensors.items():
        data = tensor.rows(0, tensor.shape[0])
        factor = next((by for part, by in factors.items() if part in name), 1.0)
        tensors[name] = PlainTensor(name=name, type="f32", data=np.asarray(data * factor, np.float32))
    return replace(model, weights=replace(model.weights, tensors=tensors))


def run_in_f16(model: Model, otherwise: Collection[int] = ()) -> Trace:
    """Return a run that keeps f16 and says so, and holds its weights in it but for those of some layers."""
    tensors = {
        name: PlainTensor(name=name, type="f32", data=F16.round(tensor.rows(0, tensor.shape[0])))
        for name, tensor in model.weights.tensors.items()
        if not any(f"layers.{layer}." in name for layer in otherwise)
    }
    kept = {**model.weights.tensors, **tensors}
    held = replace(model, weights=replace(model.weights, tensors=kept))

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        return F16.round(as_defined(key, inputs, site))

    request = Request(tokens=(3, 1, 4, 1, 5), layers=range(model.geometry.layers), stages=tuple(STAGES))
    run = capture(held, request, MemorySink(), step=step)
    said = replace(run.provenance, runtime="port", dtype="f16", arithmetic="unknown")
    return replace(run, provenance=said)


def q_and_k(layers: Collection[int]) -> set[Key]:
    return {Key(layer, "qkv_matmul") for layer in layers}


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_weights_that_a_run_rounds_are_seen_however_few_layers_it_has(layers: int) -> None:
    model = model_of(layers)
    run = run_in_f16(model)
    keys = list(run.stages)
    as_said = judge(run, model.weights, keys)
    assert q_and_k(range(layers)) <= wrong(as_said, as_said)
    held, (finding,) = in_its_format(StoredRun(trace=run, weights=model.weights), keys)
    assert finding.explanation.startswith("the weights are rounded to f16: ")
    assert held.weights is not None
    assert held.weights.cast_to is F16
    judged = judge(held.trace, held.weights, keys)
    assert wrong(judged, judged) == set()


@pytest.mark.parametrize("words", ["the weights are rounded to", "the weights are held in"])
def test_a_run_is_read_by_the_words_of_a_finding_also_of_an_earlier_bundle(words: str) -> None:
    declared = StoredRun(trace=run_in_f16(model_of(1)), weights=model_of(1).weights)
    read = as_stated(declared, f"{words} f16", ())
    assert read.weights is not None
    assert (read.weights.cast_to, read.trace) == (F16, declared.trace)
    assert as_stated(declared, "the weights are painted in f16", ()) is declared
    assert as_stated(declared, f"{words} f17", ()) is declared


def test_a_layer_behind_the_third_that_rounds_otherwise_is_wrong_and_no_reason_to_doubt() -> None:
    model = model_of(5)
    run = run_in_f16(model, (3, 4))
    keys = list(run.stages)
    held, (finding,) = in_its_format(StoredRun(trace=run, weights=model.weights), keys)
    assert finding.explanation.startswith("the weights are rounded to f16: ")
    judged = judge(held.trace, held.weights, keys)
    found = wrong(judged, judged)
    assert found >= q_and_k((3, 4))
    assert {layer for layer, _ in found} == {3, 4}


def test_of_the_first_three_layers_each_must_do_so() -> None:
    model = model_of(5)
    run = run_in_f16(model, (2,))
    said = StoredRun(trace=run, weights=model.weights)
    assert in_its_format(said, list(run.stages)) == (said, ())


def test_without_weights_nothing_is_said_of_how_they_are_held() -> None:
    run = run_in_f16(model_of(2))
    said = StoredRun(trace=run, weights=None)
    assert in_its_format(said, list(run.stages)) == (said, ())
