"""The embedded runtime against the real apr's recordings and torch, in every number format."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from apr_falsify.errors import LayerRangeError, ModelError, StageError, TokensError, UsageError
from apr_falsify.formats.aprt import read_aprt
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key, Layout, stage
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.stage_files import scan
from apr_falsify.traces.trace import Trace
from tests.support import DATA
from tests.unit.helpers import CONFIG, KNOBS, TINY, random_tensors, small_geometry, small_model

RECORDED = DATA / "apr-tiny-qwen2" / "base"
APR_TOKENS = (274, 272, 332, 13, 20, 33)
ALL = tuple(STAGES)


def run(
    model: Model,
    tokens: tuple[int, ...],
    layers: range,
    stages: tuple[str, ...] = ALL,
    dtype: str = "f64",
) -> Trace:
    request = Request(tokens=tokens, layers=layers, stages=stages)
    return embedded.capture(model, request, MemorySink(), dtype=dtype)


def rel_l2(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(np.float64(expected)))


@pytest.fixture(scope="module")
def tiny_f64() -> Trace:
    return run(open_model(TINY), APR_TOKENS, range(3))


# against the real apr


@pytest.mark.parametrize("key", list(scan(RECORDED)), ids=str)
def test_every_stage_of_the_real_apr_is_met(tiny_f64: Trace, key: Key) -> None:
    ours = tiny_f64.stages[key].data
    theirs = read_aprt(scan(RECORDED)[key]).values.reshape(ours.shape)
    if key[1] == "attn_scores":
        assert not np.triu(theirs, 1).any()  # apr writes no scores above the diagonal
        assert np.triu(ours, 1).any()
        ours = np.tril(ours)
    assert rel_l2(theirs, ours) < 2e-6


def test_the_real_apr_and_we_have_the_same_stages(tiny_f64: Trace) -> None:
    assert set(tiny_f64.stages) == set(scan(RECORDED))


def test_the_next_token_is_that_of_the_real_apr(tiny_f64: Trace) -> None:
    logits = read_aprt(RECORDED / "lm_head.bin").values
    assert tiny_f64.provenance.argmax == {"id": int(np.argmax(logits))}


# against torch, in f64 but for what transformers does in f32


FAMILIES: dict[str, dict[str, Any]] = {
    **{name: dict(knobs) for name, knobs in KNOBS.items()},
    "llama-llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama-head-dim-6": {"head_dim": 6},
    "qwen2-yarn-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 2,
        "max_window_layers": 1,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
}
TOKENS = (3, 1, 4, 1, 5, 9, 2)


@pytest.mark.parametrize("knobs", FAMILIES.values(), ids=list(FAMILIES))
def test_logits_and_hidden_states_are_those_of_transformers(knobs: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(**{**CONFIG, **knobs}, attn_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    geometry = small_geometry(**knobs)
    state = {name: torch.from_numpy(data) for name, data in random_tensors(geometry).items()}
    theirs.load_state_dict(state, strict=not geometry.tied)
    with torch.no_grad():
        out = theirs(torch.tensor([TOKENS]), output_hidden_states=True, use_cache=False)
    trace = run(small_model(**knobs), TOKENS, range(2))
    hidden = [array[0].numpy() for array in out.hidden_states]
    assert rel_l2(trace.stages[0, "embedding"].data, hidden[0]) == 0
    assert rel_l2(trace.stages[0, "post_ffn_residual"].data, hidden[1]) < 1e-6
    assert rel_l2(trace.stages[None, "final_norm"].data, hidden[2]) < 1e-6
    assert rel_l2(trace.stages[None, "lm_head"].data, out.logits[0, -1].numpy()) < 1e-6


# number formats


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_every_value_can_be_held_in_the_format_and_is_near_the_f64_run(dtype: str) -> None:
    exact, found = run(small_model(), TOKENS, range(2)), run(small_model(), TOKENS, range(2), dtype=dtype)
    number_format = FORMATS[dtype]
    for key, array in found.stages.items():
        assert array.data.dtype == np.float32
        np.testing.assert_array_equal(number_format.round(array.data), array.data)
        assert rel_l2(array.data, exact.stages[key].data) < 300 * number_format.unit_roundoff, key
    assert found.provenance.dtype == found.provenance.arithmetic == dtype


def test_f64_is_held_as_f64() -> None:
    assert {array.data.dtype for array in run(small_model(), TOKENS, range(2)).stages.values()} == {
        np.dtype(np.float64)
    }


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_two_runs_are_identical_bit_for_bit(dtype: str) -> None:
    first, second = (run(small_model(), TOKENS, range(2), dtype=dtype) for _ in range(2))
    for key, array in first.stages.items():
        assert array.data.tobytes() == second.stages[key].data.tobytes()


def test_weights_that_are_not_finite_are_data_and_no_warning() -> None:
    model = small_model()
    embedding = model.weights.tensors["model.embed_tokens.weight"].data
    embedding[TOKENS[2], 5], embedding[TOKENS[4], 0] = np.inf, np.nan
    for dtype in FORMATS:
        trace = run(model, TOKENS, range(2), dtype=dtype)
        assert np.isnan(trace.stages[None, "lm_head"].data).all()
        assert np.isfinite(trace.stages[0, "attn_softmax"].data[:, :2]).all()  # no token sees a later one


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="f8"):
        run(small_model(), TOKENS, range(2), dtype="f8")


# what runs and what is kept


class CountingSink(MemorySink):
    """Keeps the keys alone."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Key] = []

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        self.keys.append(key)


@pytest.mark.parametrize(
    ("layers", "stages", "last", "count"),
    [
        (range(0, 1), ("embedding",), Key(0, "embedding"), 1),
        (range(0, 1), ("attn_norm",), Key(0, "attn_norm"), 2),
        (range(0, 1), ALL, Key(0, "post_ffn_residual"), 17),
        (range(1, 2), ("attn_scores",), Key(1, "attn_scores"), 22),
        (range(0, 2), ("attn_norm", "final_norm"), Key(None, "final_norm"), 34),
        (range(0, 2), ("lm_head",), Key(None, "lm_head"), 35),
    ],
)
def test_only_what_is_needed_runs(
    monkeypatch: pytest.MonkeyPatch, layers: range, stages: tuple[str, ...], last: Key, count: int
) -> None:
    ran: list[Key] = []
    original = embedded.run_stage

    def spy(model: Model, tokens: Any, values: Any, key: Key, *rest: Any) -> Any:
        ran.append(key)
        assert len(values) <= 18  # one layer's stages and what entered it
        return original(model, tokens, values, key, *rest)

    monkeypatch.setattr(embedded, "run_stage", spy)
    trace = run(small_model(), TOKENS, layers, stages)
    assert (len(ran), ran[-1]) == (count, last)
    assert set(trace.stages) <= set(ran)


def test_layers_do_not_depend_on_which_others_were_asked_for() -> None:
    whole, part = run(small_model(), TOKENS, range(2)), run(small_model(), TOKENS, range(1, 2))
    assert {layer for layer, _ in part.stages} == {1}
    for key, array in part.stages.items():
        np.testing.assert_array_equal(array.data, whole.stages[key].data)


def test_stages_come_in_forward_order() -> None:
    sink = CountingSink()
    request = Request(tokens=TOKENS, layers=range(2), stages=ALL)
    embedded.capture(small_model(), request, sink)
    assert sink.keys == list(request.keys(small_geometry()))


def test_memory_does_not_grow_with_the_layers() -> None:
    def peak(layers: int) -> int:
        model = small_model(num_hidden_layers=layers)
        request = Request(tokens=TOKENS * 8, layers=range(layers), stages=("post_ffn_residual",))
        tracemalloc.start()
        embedded.capture(model, request, CountingSink(), dtype="f32")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(12) < 1.3 * peak(3)


def test_shapes_are_canonical(tiny_f64: Trace) -> None:
    dims = tiny_f64.geometry.dims(len(APR_TOKENS))
    for (_, name), array in tiny_f64.stages.items():
        assert array.data.shape == tuple(dims[axis] for axis in stage(name).axes)
        assert array.layout == ()


def test_the_provenance_says_what_was_run() -> None:
    found: Provenance = run(small_model(), TOKENS, range(1), ("attn_norm",), "f32").provenance
    assert (found.runtime, found.device, found.layers, found.stages) == (
        "embedded",
        "cpu",
        (0, 1),
        ("attn_norm",),
    )
    assert found.argmax is None
    assert set(found.libraries) == {"numpy"}
    assert found.created.endswith("+00:00")


# refusals, before anything is run


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(tokens=(), layers=range(1), stages=ALL), TokensError),
        (Request(tokens=(32,), layers=range(1), stages=ALL), TokensError),
        (Request(tokens=TOKENS, layers=range(3), stages=ALL), LayerRangeError),
        (Request(tokens=TOKENS, layers=range(1), stages=("moe_router",)), StageError),
    ],
)
def test_an_impossible_request_is_refused_before_anything_runs(
    request_: Request, error: type[Exception]
) -> None:
    sink = CountingSink()
    with pytest.raises(error):
        embedded.capture(small_model(), request_, sink)
    assert sink.keys == []


def test_a_model_without_a_needed_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    model = small_model()
    del model.weights.tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        run(model, TOKENS, range(2))
    assert len(run(model, TOKENS, range(1)).stages) == 17
