"""Where values leave the range of a number format, or nearly do, a correct run is within its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from apr_falsify.compare.floor import rounding
from apr_falsify.compare.judge import judge
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.products import product
from apr_falsify.compare.site import ReplaySite
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT, UNIT, Known
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.subjects.kernel import arithmetic_named
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.checkpoints import RECIPES, Recipe, make_checkpoint
from tests.sampling import in_turn
from tests.unit.helpers import small_geometry
from tests.unit.oracle.requests import request_for

pytestmark = pytest.mark.bare

F64 = npt.NDArray[np.float64]
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPES = tuple(TORCH)


def held(x: npt.NDArray[np.floating], dtype: str) -> torch.Tensor:
    return torch.tensor(np.asarray(x, np.float32)).to(TORCH[dtype])


def f64(x: torch.Tensor) -> F64:
    return x.double().numpy()


def ratios(name: str, inputs: dict[str, F64], right: F64, got: F64, dtype: str, geometry: Geometry) -> F64:
    """Return how far ``got`` is from ``right``, in floors."""
    site = ReplaySite(weights=None, geometry=geometry, layer=0, tokens=(0,) * len(right))
    known = {role: Known(value=value) for role, value in inputs.items()}
    store = max(FORMATS[dtype].unit_roundoff, UNIT)
    return np.asarray(np.abs(got - right) / (LIMIT * rounding(name, known, right, site, store)))


# --- the activation ---------------------------------------------------------------------------------

SILUS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch": torch.nn.functional.silu,
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x / (1 + exp(-x)) in f32": lambda x: (x.float() / (1 + torch.exp(-x.float()))).to(x.dtype),
    "subnormals flushed": lambda x: (x.float() * flushed(torch.sigmoid(x.float()))).to(x.dtype),
    "an exponent of at most 88": lambda x: (x.float() / (1 + torch.exp((-x.float()).clamp(max=88)))).to(
        x.dtype
    ),
}
"""Ways of correct runtimes to compute silu."""


def flushed(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 2.0**-126, torch.zeros_like(x), x)


gates = hnp.arrays(
    np.float32, (2, 16), elements=st.floats(-60000, 60000, width=32) | st.floats(-110, 110, width=32)
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", SILUS)
@settings(max_examples=60, deadline=None)
@given(x=gates)
def test_every_correct_silu_is_within_its_floor_for_every_gate(
    way: str, dtype: str, x: npt.NDArray[np.float32]
) -> None:
    gate = held(x, dtype)
    exact = f64(gate)
    with np.errstate(over="ignore"):
        right = exact / (1 + np.exp(-exact))
    got = f64(SILUS[way](gate))
    assert ratios("ffn_silu", {"ffn_gate": exact}, right, got, dtype, small_geometry()).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(x=gates)
def test_torchs_gelu_is_within_its_floor_for_every_gate(dtype: str, x: npt.NDArray[np.float32]) -> None:
    gate = held(x, dtype)
    exact = f64(gate)
    inner = np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))
    got = f64(torch.nn.functional.gelu(gate, approximate="tanh"))
    geometry = replace(small_geometry(), activation="gelu_pytorch_tanh")
    found = ratios("ffn_silu", {"ffn_gate": exact}, exact / 2 * (1 + inner), got, dtype, geometry)
    assert found.max() <= 1


@pytest.mark.parametrize("gate", [-80.0, -60.0, -20.0])
def test_the_allowance_hides_no_wrong_silu_above_what_f32_can_lose(gate: float) -> None:
    x = np.full((1, 4), gate)
    right = x / (1 + np.exp(-x))
    found = ratios("ffn_silu", {"ffn_gate": x}, right, right * 1.01, "f32", small_geometry())
    assert found.min() > 1


# --- softmax and caps -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, (2, 4, 4), elements=st.floats(-2000, 2000, width=32)))
def test_torchs_softmax_is_within_its_floor_where_weights_underflow(
    dtype: str, x: npt.NDArray[np.float32]
) -> None:
    visible = np.tri(4, dtype=bool)
    scores = held(x, dtype)
    exact = np.where(visible, f64(scores), -np.inf)
    raised = np.exp(exact - exact.max(axis=-1, keepdims=True))
    right = raised / raised.sum(axis=-1, keepdims=True)
    masked = scores.masked_fill(~torch.tensor(visible), torch.finfo(scores.dtype).min)
    got = f64(torch.softmax(masked, dim=-1, dtype=torch.float32).to(scores.dtype))
    found = ratios("attn_softmax", {"attn_scores": f64(scores)}, right, got, dtype, small_geometry())
    assert found.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [30.0, 50.0])
@settings(max_examples=40, deadline=None)
@given(
    scores=hnp.arrays(
        np.float32,
        (4, 4),
        elements=st.floats(-200, 200, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32),
    )
)
def test_a_soft_cap_step_by_step_is_within_its_floor(
    cap: float, dtype: str, scores: npt.NDArray[np.float32]
) -> None:
    """As transformers does it: x / cap, tanh and the product are each kept in the run's format."""
    geometry = replace(small_geometry(), attn_softcap=cap, attn_scales=(1.0,) * 2, heads=1, kv_heads=1)
    q = np.zeros((4, geometry.head_dim))
    k = np.zeros((4, geometry.head_dim))
    q[:, :4] = np.eye(4)  # so that q.k is the score, exactly
    x = held(scores, dtype)
    k[:, :4] = f64(x).T
    got = f64(torch.tanh(x / cap) * cap)[None]
    right = (cap * np.tanh(f64(x) / cap))[None]
    found = ratios("attn_scores", {"q_post_rope": q, "k_post_rope": k}, right, got, dtype, geometry)
    assert found.max() <= 1


# --- sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "of_weights"), [(1e-24, 1.0), (1.0, 1e-24), (1e18, 1e15), (1e-12, 1e-12)])
def test_the_rounding_of_a_sum_is_the_same_share_of_it_at_every_size(size: float, of_weights: float) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 64)), rng.normal(size=(5, 64)).astype(np.float32)
    tensors = [
        PlainTensor(name="w", type="f32", data=(w * np.float32(by)).astype(np.float32))
        for by in (1.0, of_weights)
    ]
    _, usual = product(x, (PLAIN,), None, tensors[0])
    _, extreme = product(x * size, (PLAIN,), None, tensors[1])
    np.testing.assert_allclose(np.sqrt(extreme) / (size * of_weights), np.sqrt(usual), rtol=1e-3)


# --- whole runs -------------------------------------------------------------------------------------

RECIPES_HERE = {
    **RECIPES,
    "gemma2-capped-as-published": Recipe(
        family="gemma2",
        config={
            "query_pre_attn_scalar": 20,
            "pad_token_id": None,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 5,
        },
    ),
}
Edit = Callable[[str, torch.Tensor], torch.Tensor]


def times(factor: float, *names: str) -> Edit:
    return lambda name, weight: weight * factor if any(part in name for part in names) else weight


def one_massive_channel(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A channel that dwarfs all others, under norms that raise these again."""
    if "embed_tokens" in name:
        return torch.cat([weight[:, :3], weight[:, 3:4] * 3000, weight[:, 4:]], dim=1)
    return weight * 60 if "input_layernorm" in name else weight


EXTREMES: dict[str, tuple[str, Edit]] = {
    "gates of -100 to 100": ("llama", times(30, "gate_proj")),
    "gates of thousands": ("phi3", times(300, "gate_up_proj")),
    "gelu of hundreds": ("gpt2", times(100, "mlp.c_fc")),
    "one massive channel": ("llama", one_massive_channel),
    "scores hundreds apart": ("llama", times(12, "q_proj", "k_proj")),
    "scores beyond f16": ("llama", times(200, "q_proj", "k_proj")),
    "small scores under a cap": ("gemma2-capped-as-published", times(0.03, "q_proj", "k_proj")),
    "small values before a norm": ("gemma2-capped-as-published", times(1e-5, "o_proj", "down_proj")),
    "small logits under a cap": ("gemma2-capped-as-published", times(1e-4, "embed_tokens")),
    "embeddings of 1e-20": ("llama", times(1e-20, "embed_tokens")),
    "experts hundreds of logits apart": ("qwen3_moe", times(3000, "mlp.gate.")),
    "small experts": ("qwen3_moe", times(1e-5, "down_proj")),
    "experts that are all alike": ("qwen3_moe", times(1e-20, "embed_tokens")),
}
"""What is extreme -> the recipe of a checkpoint, and what makes it so."""


@pytest.fixture(scope="module")
def extreme(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Model]:
    def made(what: str, dtype: str) -> Model:
        name, edit = EXTREMES[what]
        directory: Path = tmp_path_factory.mktemp("extreme")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.checkpoints.RECIPES", RECIPES_HERE)
            make_checkpoint(directory, name, TORCH[dtype])
        path = directory / "model.safetensors"
        weights = {key: edit(key, weight).contiguous() for key, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        return open_model(directory)

    return made


def accused(trace: Trace, model: Model) -> dict[Key, float]:
    found = judge(trace, model.weights, list(trace.stages))
    assert all(entry.fit is not None for entry in found.values())
    return {key: entry.fit.excess for key, entry in found.items() if entry.fit and entry.fit.excess > 1}


def overflows(what: str, dtype: str, trace: Trace) -> bool:
    return dtype == "f16" and any(not np.isfinite(array.data).all() for array in trace.stages.values())


@pytest.mark.parametrize(("what", "dtype"), in_turn(EXTREMES, DTYPES))
def test_a_correct_run_of_an_extreme_checkpoint_is_not_accused(
    what: str, dtype: str, extreme: Callable[[str, str], Model]
) -> None:
    model = extreme(what, dtype)
    request = request_for(model, tokens=17)
    for trace in (
        capture(model, request, MemorySink(), dtype=dtype),
        embedded.capture(model, request, MemorySink(), dtype=dtype),
    ):
        found = accused(trace, model)
        first = next((key for key, array in trace.stages.items() if not np.isfinite(array.data).all()), None)
        # A product beyond 65504 is infinite in f16: that is an error, and it is located where it arises.
        assert next(iter(found), None) == first if overflows(what, dtype, trace) else found == {}


@pytest.mark.parametrize("arithmetic", ["f32; q8_0 blocks of 32", "f32; q8 blocks of 256"])
def test_extreme_gates_in_quantised_arithmetic_are_not_accused(
    arithmetic: str, extreme: Callable[[str, str], Model]
) -> None:
    for what in ("gates of -100 to 100", "one massive channel"):
        model = extreme(what, "f32")
        chosen = arithmetic_named(arithmetic)
        trace = embedded.capture(model, request_for(model, tokens=17), MemorySink(), arithmetic=chosen)
        assert accused(trace, model) == {}


def test_a_head_whose_norm_was_not_captured_is_judged(extreme: Callable[[str, str], Model]) -> None:
    model = extreme("scores hundreds apart", "f32")
    trace = embedded.capture(model, request_for(model, tokens=5), MemorySink())
    stages = {key: array for key, array in trace.stages.items() if key != Key(None, "final_norm")}
    (entry,) = judge(replace(trace, stages=stages), model.weights, [Key(None, "lm_head")]).values()
    assert entry.fit is not None
    assert entry.fit.excess <= 1


def test_scores_beyond_the_end_of_f16_are_located_and_named(extreme: Callable[[str, str], Model]) -> None:
    model = extreme("scores beyond f16", "f16")
    request = request_for(model, tokens=17)
    trace = capture(model, request, MemorySink(), dtype="f16")
    assert any(
        np.isinf(array.data).any() for (_, name), array in trace.stages.items() if name == "attn_scores"
    )
    first = bisect(trace, trace, weights=model.weights).sources[0]
    assert first.stages == ("attn_scores",)
    assert "values are infinite: they were beyond 65504, the end of f16" in first.explanation
