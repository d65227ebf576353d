"""What is captured under a stage's name is what transformers itself reports, or follows from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.oracle.capture import capture, load
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.checkpoints import RECIPES
from tests.sampling import one_in
from tests.unit.oracle.conftest import OpenCheckpoint
from tests.unit.oracle.requests import plain_model, request_for

pytestmark = pytest.mark.bare


def reported(model: Model, tokens: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return hidden states and attention weights as the plain model reports them."""
    plain = plain_model(model)
    with torch.no_grad():
        out = plain(
            torch.tensor([tokens]), use_cache=False, output_hidden_states=True, output_attentions=True
        )
    return [state[0].numpy() for state in out.hidden_states], [each[0].numpy() for each in out.attentions]


@pytest.mark.parametrize("name", one_in(2, RECIPES))
def test_hidden_states_and_attentions_are_those_that_transformers_reports(
    name: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    request = request_for(model, tokens=11)
    trace = capture(model, request, MemorySink())
    states, attentions = reported(model, request.tokens)

    expected = {
        Key(0, "embedding"): states[0],
        Key(0, "post_ffn_residual"): states[1],
        Key(1, "post_ffn_residual"): states[2],
        Key(None, "final_norm"): states[3],  # the last state that transformers reports is past the norm
        **{
            Key(layer, "attn_softmax"): weights
            for layer, weights in zip(filter(model.geometry.attends_at, range(3)), attentions, strict=True)
        },
    }
    for key, values in expected.items():
        assert trace.stages[key].data.tobytes() == values.tobytes(), key


def follows(trace: Trace, layer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return pairs that must be equal to the last bit: each an f32 operation of two others."""
    s = {name: trace.stages[layer, name].data for name in STAGES if (layer, name) in trace.stages}
    entered = trace.stages[Key(0, "embedding") if layer == 0 else Key(layer - 1, "post_ffn_residual")].data
    scale = np.float32(trace.geometry.residual_scale)  # 1 but in Granite
    if trace.geometry.parallel:
        added = (s["attn_out"] + s["ffn_out"]) + entered  # Phi's order and GPT-NeoX's; or Cohere's
        either = (entered + s["attn_out"]) + s["ffn_out"]
        whole = s["post_ffn_residual"]
        pairs = {"post_ffn_residual": (whole, np.where(whole == added, added, either))}
    else:
        pairs = {}
        if "post_attn_residual" in s:  # a layer of Nemotron-H mixes tokens, or has a feed-forward block
            attended = entered + s["attn_out"] * scale
            pairs["post_attn_residual"] = (s["post_attn_residual"], attended)
        last = s["ffn_out" if "ffn_out" in s else "attn_out"]
        fed = s.get("post_attn_residual", entered) + last * scale
        pairs["post_ffn_residual"] = (s["post_ffn_residual"], fed)
    if "ffn_swigl" in s:
        pairs["ffn_swigl"] = (s["ffn_swigl"], s["ffn_silu"] * s["ffn_up"])
    if "moe_ffn_out" in s:
        pairs["moe_ffn_out"] = (s["moe_ffn_out"], s["ffn_out"][-1])
    return pairs


@pytest.mark.parametrize("name", one_in(2, RECIPES, start=1))
def test_sums_and_products_of_captured_stages_are_captured_stages(
    name: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    trace = capture(model, request_for(model), MemorySink())

    for layer in range(model.geometry.layers):
        for stage, (captured, expected) in follows(trace, layer).items():
            assert np.array_equal(captured, expected), Key(layer, stage)


def test_qkv_matmul_is_computed_without_the_bias_and_not_as_output_minus_bias(
    checkpoint: OpenCheckpoint,
) -> None:
    model = checkpoint("qwen2")
    oracle = load(model, dtype="f16")
    trace = oracle.capture(request_for(model), MemorySink())
    plain, biased = (trace.stages[0, name].data for name in ("qkv_matmul", "qkv_bias"))
    bias = np.concatenate([model.weights.vector(f"{role}_bias", 0) for role in "qkv"]).astype(np.float16)

    x = trace.stages[0, "attn_norm"].data.astype(np.float64)
    weight = np.concatenate([model.weights.tensor(role, 0).rows(0, 10**6) for role in "qkv"])
    exact = x @ weight.astype(np.float16).astype(np.float64).T

    def far(values: np.ndarray) -> float:
        return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))

    assert far(plain) < 1e-3
    assert far(biased - bias) > 10 * far(plain)  # what the large bias has already cost


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_a_model_without_a_bias_has_no_qkv_bias(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)

    assert not any(
        stage == "qkv_bias" for _, stage in capture(model, request_for(model), MemorySink()).stages
    )


def test_provenance_says_what_ran(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")
    request = request_for(model)

    found = capture(model, request, MemorySink(), dtype="bf16").provenance

    assert found.runtime == "hf"
    assert found.version == transformers.__version__
    assert found.libraries == {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    assert (found.dtype, found.arithmetic, found.device) == ("bf16", "bf16", "cpu")
    assert found.layers == (0, 3)
    assert found.stages == request.stages
    assert found.model == f"{model.path.name}@sha256:{str(found.model_sha256)[:12]}"
    assert found.argmax is not None
    assert found.argmax["text"] is None  # the checkpoint has no tokenizer


def test_logits_that_are_not_captured_leave_no_argmax(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")

    assert capture(model, request_for(model, layers=range(1)), MemorySink()).provenance.argmax is None
