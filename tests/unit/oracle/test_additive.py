"""SUB-005: capture adds nothing and changes nothing, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import ATTENTION_SUBSTAGES, STAGES, Key
from apr_falsify.oracle.capture import capture, forward, load
from apr_falsify.oracle.libraries import attention_functions, dtype_named
from apr_falsify.oracle.probe import probed
from apr_falsify.oracle.run import Oracle, to_numpy
from apr_falsify.traces.capture import MemorySink
from tests.checkpoints import FAMILIES, RECIPES
from tests.sampling import in_turn, one_in
from tests.unit.oracle.conftest import OpenCheckpoint
from tests.unit.oracle.requests import plain_model, request_for

pytestmark = pytest.mark.bare


def plain_logits(model: Model, tokens: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Return the logits [S, V] of the model as transformers loads and runs it, nothing of ours between."""
    plain = plain_model(model, dtype=dtype_named(dtype))
    with torch.no_grad():
        logits: torch.Tensor = plain(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def bits(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.falsify_attn_sub_005
@pytest.mark.parametrize(("name", "dtype", "tokens"), in_turn(FAMILIES, ["f32", "f16", "bf16"], [7, 40]))
def test_logits_are_byte_identical_to_the_plain_eager_forward(
    name: str, dtype: str, tokens: int, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    request = request_for(model, tokens=tokens)
    plain = plain_logits(model, request.tokens, dtype)
    oracle = load(model, dtype=dtype)

    with probed(oracle.module, request.keys(model.geometry), lambda key, values: None, model.geometry):
        probed_logits = oracle.run(request.tokens).logits[0]
    trace = oracle.capture(request, MemorySink())

    assert bits(probed_logits) == bits(plain)
    assert trace.stages[None, "lm_head"].data.tobytes() == to_numpy(plain[-1]).tobytes()
    assert trace.provenance.argmax is not None
    assert trace.provenance.argmax["id"] == int(plain[-1].argmax())
    assert trace.tokens == request.tokens


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["gpt2", "gpt2-by-layer-upcast"])
def test_a_long_prompt_shows_in_which_format_gpt2_computes_its_softmax(
    name: str, dtype: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    request = request_for(model, tokens=230)
    plain = plain_logits(model, request.tokens, dtype)
    oracle = load(model, dtype=dtype)

    with probed(oracle.module, request.keys(model.geometry), lambda key, values: None, model.geometry):
        assert bits(oracle.run(request.tokens).logits[0]) == bits(plain)


@pytest.mark.falsify_attn_sub_005
@pytest.mark.parametrize("name", one_in(2, RECIPES))
def test_our_plain_forward_is_that_of_transformers(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    tokens = request_for(model).tokens

    assert forward(model, tokens).tobytes() == plain_logits(model, tokens, "f32").numpy().tobytes()


def footprint(oracle: Oracle) -> list[Any]:
    """Return everything that a probe touches."""
    modules = list(oracle.module.modules())
    return [
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        [id(module.config) for module in modules if hasattr(module, "config")],
        [module.config._attn_implementation for module in modules if hasattr(module, "config")],
        sorted(attention_functions),
        [sorted(vars(module)) for module in modules],
    ]


@pytest.mark.parametrize("name", ["qwen2", "qwen3_next", "lfm2"])
def test_everything_is_undone_after_a_capture(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    oracle = load(model)
    before = footprint(oracle)

    oracle.capture(request_for(model), MemorySink())

    assert footprint(oracle) == before


class FullSink(MemorySink):
    """Raises at one stage, as a full disk would."""

    def __init__(self, at: Key) -> None:
        super().__init__()
        self._at = at

    def add(self, key: Key, data: Any, layout: Any = ()) -> None:
        super().add(key, data, layout)
        if key == self._at:
            raise OSError("no space")


@pytest.mark.falsify_attn_sub_005
@pytest.mark.parametrize(
    "at", [Key(0, "embedding"), Key(1, "qkv_matmul"), Key(1, "attn_scores"), Key(None, "lm_head")]
)
def test_everything_is_undone_after_an_error(at: Key, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("qwen2")
    oracle = load(model)
    request = request_for(model)
    before, logits = footprint(oracle), oracle.logits(request.tokens)

    with pytest.raises(OSError, match="no space"):
        oracle.capture(request, FullSink(at))

    assert footprint(oracle) == before
    assert oracle.logits(request.tokens).tobytes() == logits.tobytes()
    whole = oracle.capture(request, MemorySink())
    assert set(whole.stages) == set(request.keys(model.geometry))


def test_layers_that_are_not_asked_for_are_not_touched(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")
    oracle = load(model)
    request = request_for(model, layers=range(1, 2))
    layers = oracle.module.get_submodule("model.layers")

    with probed(oracle.module, request.keys(model.geometry), lambda key, values: None, model.geometry):
        own = [layer.self_attn.config is not oracle.module.config for layer in layers]
        hooked = [any(module._forward_hooks for module in layer.modules()) for layer in layers]

    assert own == [False, True, False]
    assert hooked == [False, True, False]


def test_only_the_layers_up_to_the_last_one_are_loaded_and_no_head(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")
    request = request_for(model, layers=range(1, 2))

    oracle = Oracle.for_request(model, request, dtype="f32", device="cpu")
    trace = oracle.capture(request, MemorySink())

    assert len(oracle.module.get_submodule("layers")) == 2
    assert not hasattr(oracle.module, "lm_head")
    assert set(trace.stages) == {key for key in request.keys(model.geometry) if key[0] == 1}


@pytest.mark.parametrize(
    "name",
    [
        "qwen2-tied-yarn-window",
        "mistral",
        "phi3-longrope-partial-window",
        "gpt2",
        "gemma2",
        "gemma3",
        "qwen3_moe-dense-layer-window",
    ],
)
def test_a_layer_is_the_same_whether_or_not_the_rest_is_loaded(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    part = capture(model, request_for(model, layers=range(1, 2)), MemorySink())
    whole = capture(model, request_for(model), MemorySink())

    assert {key: array.data.tobytes() for key, array in part.stages.items()} == {
        key: whole.stages[key].data.tobytes() for key in part.stages
    }


def test_without_the_attention_substages_the_others_stay_bit_for_bit(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("qwen3")
    stages = tuple(name for name in STAGES if name not in ATTENTION_SUBSTAGES)
    oracle = load(model)
    request = request_for(model, stages=stages)

    with probed(oracle.module, request.keys(model.geometry), lambda key, values: None, model.geometry):
        layers = oracle.module.get_submodule("model.layers")
        assert all(layer.self_attn.config is oracle.module.config for layer in layers)
    part = oracle.capture(request, MemorySink())
    whole = oracle.capture(request_for(model), MemorySink())

    assert {name for _, name in whole.stages} - {name for _, name in part.stages} == set(ATTENTION_SUBSTAGES)
    assert all(part.stages[key].data.tobytes() == whole.stages[key].data.tobytes() for key in part.stages)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_what_was_handed_out_never_changes_afterwards(dtype: str, checkpoint: OpenCheckpoint) -> None:
    class Copies(MemorySink):
        def __init__(self) -> None:
            super().__init__()
            self.then: dict[Key, bytes] = {}

        def add(self, key: Key, data: Any, layout: Any = ()) -> None:
            super().add(key, data, layout)
            self.then[key] = data.tobytes()

    model = checkpoint("llama-biased-tied-llama3")
    sink = Copies()
    oracle = load(model, dtype=dtype)

    trace = oracle.capture(request_for(model), sink)
    oracle.run(request_for(model, tokens=5).tokens)

    assert {key: array.data.tobytes() for key, array in trace.stages.items()} == sink.then


@pytest.mark.falsify_save_tensor_002
def test_two_captures_give_the_same_bytes(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("mistral")
    first, second = (capture(model, request_for(model), MemorySink()) for _ in range(2))

    assert all(np.array_equal(array.data, second.stages[key].data) for key, array in first.stages.items())
