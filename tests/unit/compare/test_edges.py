"""A value on the edge between two steps may fall to either side, and nothing else is excused by it.

What the runtime makes is computed here, from the weights as the gguf package decodes them and with roundings
that are not those of the table: x / scale, ties to even, a scale of max * (1 / 127).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.judge import Judged, judge
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects import embedded
from apr_falsify.subjects.kernel import arithmetic_named
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.support import DATA

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
KEY = Key(0, "ffn_gate")
FILE = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
TOKENS = (274, 272, 332, 13, 20, 33)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(FILE)


@pytest.fixture(scope="module")
def gate() -> F64:
    (tensor,) = [t for t in gguf.GGUFReader(FILE).tensors if t.name == "blk.0.ffn_gate.weight"]
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def traced(model: Model, arithmetic: str) -> Trace:
    request = Request(tokens=TOKENS, layers=range(1), stages=tuple(STAGES))
    return embedded.capture(model, request, MemorySink(), arithmetic=arithmetic_named(arithmetic))


def with_gate(trace: Trace, inputs: F32, made: F64) -> Trace:
    stages = {
        **trace.stages,
        Key(0, "ffn_norm"): StageArray(data=inputs),
        KEY: StageArray(data=made.astype(np.float32)),
    }
    return replace(trace, stages=stages)


def judged(model: Model, trace: Trace, arithmetic: str) -> Judged:
    # With every stage of the layer, which settles what it computes in.
    return judge(trace, model.weights, list(trace.stages), arithmetic)[KEY]


def on_edges(block: int, seed: int = 0, count: int = 3) -> F32:
    """Rows of 256 values of which ``count`` a block lie beside (k + 1/2) steps, an f32 number or two away."""
    generator = np.random.default_rng(seed)
    blocks = generator.normal(size=(len(TOKENS), 256 // block, block)).astype(np.float32)
    largest = np.abs(blocks).max(axis=-1)
    for index in np.ndindex(*blocks.shape[:2]):
        chosen = generator.choice(block, size=count, replace=False)
        chosen = chosen[np.abs(blocks[index][chosen]) < 0.9 * largest[index]]
        steps = np.floor(blocks[index][chosen] / largest[index] * 127) + 0.5
        values = (steps * (largest[index].astype(np.float64) / 127)).astype(np.float32)
        blocks[index][chosen] = values
    return blocks.reshape(len(TOKENS), 256)


def quotient_256(x: F32) -> F64:
    blocks = x.reshape(len(x), -1, 256)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    return (np.rint(blocks / scale).astype(np.float64) * scale).reshape(x.shape)


def quotient_32(x: F32) -> F64:
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    kept = scale.astype(np.float16).astype(np.float64)
    return (np.rint(blocks / scale).astype(np.float64) * kept).reshape(x.shape)


def scaled_by_a_product(x: F32) -> F64:
    """As ``q8_0`` but for the scale, max * (1 / 127), which may fall to another f16 number than max / 127."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    kept = (largest * (np.float32(1) / np.float32(127))).astype(np.float16).astype(np.float64)
    return (np.rint(blocks * (np.float32(127) / largest)).astype(np.float64) * kept).reshape(x.shape)


QUOTIENTS: dict[str, tuple[int, Callable[[F32], F64]]] = {
    "f32; q8 blocks of 256": (256, quotient_256),
    "f32; q8_0 blocks of 32": (32, quotient_32),
}


@pytest.mark.parametrize("arithmetic", QUOTIENTS)
def test_values_on_an_edge_may_fall_to_either_side(model: Model, gate: F64, arithmetic: str) -> None:
    block, quantised = QUOTIENTS[arithmetic]
    inputs = on_edges(block)
    entry = judged(
        model, with_gate(traced(model, arithmetic), inputs, quantised(inputs) @ gate.T), arithmetic
    )
    assert not entry.in_error
    assert entry.fit is not None
    assert entry.fit.edges > 0
    assert entry.fit.residual < 1e-6


@pytest.mark.parametrize("arithmetic", QUOTIENTS)
def test_a_value_that_lies_on_no_edge_is_an_error_of_its_row(
    model: Model, gate: F64, arithmetic: str
) -> None:
    """One step of one value in one row, as an edge would make it, but half a step away from any."""
    block, quantised = QUOTIENTS[arithmetic]
    inputs = on_edges(block)
    inputs[2, 5] = np.abs(inputs[2, :block]).max() * np.float32(40.0 / 127)
    kept = quantised(inputs)
    kept[2, 5] *= 41 / 40
    entry = judged(model, with_gate(traced(model, arithmetic), inputs, kept @ gate.T), arithmetic)
    assert entry.in_error


@pytest.mark.parametrize("arithmetic", QUOTIENTS)
def test_an_error_of_the_same_size_beside_values_on_an_edge_is_an_error(
    model: Model, gate: F64, arithmetic: str
) -> None:
    """Row 2 has values that fell to the other side, and one output channel that is wrong by as much."""
    block, quantised = QUOTIENTS[arithmetic]
    inputs = on_edges(block)
    made = quantised(inputs) @ gate.T
    fallen = quantised(inputs) - quantised(inputs * np.float32(1 + 1e-6))
    made[2, 17] += np.abs(fallen @ gate.T)[fallen.any(axis=1)].max()
    trace = with_gate(traced(model, arithmetic), inputs, made)
    entry = judged(model, trace, arithmetic)
    assert entry.in_error
    assert entry.fit is not None
    assert entry.fit.edges > 0  # the row's own edges are found all the same


def test_a_scale_between_two_f16_numbers_may_be_either(model: Model, gate: F64) -> None:
    arithmetic = "f32; q8_0 blocks of 32"
    inputs = on_edges(32, count=0)
    blocks = inputs.reshape(-1, 32)
    # The largest of each block is put where max / 127 and max * (1 / 127) round to two f16 numbers.
    halves = np.arange(1025, 2047, dtype=np.float64)
    middles = ((halves + 0.5) * 2.0**-16 * 127).astype(np.float32)
    around = np.concatenate([middles, *(np.nextafter(middles, np.float32(side)) for side in (0, 9))])
    differ = (around / np.float32(127)).astype(np.float16) != (
        around * (np.float32(1) / np.float32(127))
    ).astype(np.float16)
    assert differ.any()
    blocks *= 0.5 / np.abs(blocks).max(axis=-1, keepdims=True)
    blocks[:, 3] = np.resize(around[differ], len(blocks))
    entry = judged(
        model,
        with_gate(traced(model, arithmetic), inputs, scaled_by_a_product(inputs) @ gate.T),
        arithmetic,
    )
    assert not entry.in_error
    assert entry.fit is not None
    assert entry.fit.edges > 0


def test_what_is_on_no_edge_takes_none(model: Model) -> None:
    arithmetic = "f32; q8 blocks of 256"
    trace = traced(model, arithmetic)
    entries = judge(trace, model.weights, list(trace.stages), arithmetic)
    assert all(entry.fit is not None and entry.fit.edges == 0 for entry in entries.values())
