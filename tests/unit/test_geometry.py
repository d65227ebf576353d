"""Geometry from config.json as transformers itself reads it; absurd ones refused."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_falsify.errors import AprFalsifyError, GeometryError, LayerRangeError, ModelError, UnknownFamilyError
from apr_falsify.model.geometry import geometry_of_config, geometry_of_hf_dir, read_config
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from tests.unit.helpers import CONFIG, KNOBS, TINY, run_script, small_geometry

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

LIKE_TRANSFORMERS: dict[str, dict[str, Any]] = {
    **{name: dict(knobs) for name, knobs in KNOBS.items()},
    "llama-without-kv-heads": {"num_key_value_heads": None},
    "llama-head-dim-null": {"head_dim": None},
    "llama-head-dim": {"head_dim": 8},
    "llama-old-theta": {"rope_theta": 5e5, "rope_scaling": None},
    "llama-old-linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-old-llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-new-llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "llama-context-outside": {
        "rope_scaling": LLAMA3,
        "original_max_position_embeddings": 16,
    },
    "llama-context-from-max": {
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    },
    "llama-both-rope-keys": {
        "rope_theta": 7.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen2-yarn": {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": YARN},
    "qwen2-yarn-all": {
        "model_type": "qwen2",
        "rope_parameters": {
            **YARN,
            "rope_theta": 1e6,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.1,
            "truncate": False,
        },
    },
    "qwen2-window-unused": {"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": False},
    "qwen2-window-by-layers": {
        "model_type": "qwen2",
        "sliding_window": 7,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen2-window-by-types": {
        "model_type": "qwen2",
        "sliding_window": 7,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2-window-left-out": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
    "qwen2-window-from-layer-28": {"model_type": "qwen2", "use_sliding_window": True},
    "qwen2-window-null": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": None},
    "qwen3-biased": {"model_type": "qwen3", "attention_bias": True, "head_dim": 8},
    "qwen3-head-dim-left-out": {"model_type": "qwen3"},
    "mistral-no-window": {"model_type": "mistral", "sliding_window": None},
    "mistral-window-left-out": {"model_type": "mistral"},
    "mistral-head-dim": {"model_type": "mistral", "head_dim": 12},
}


def windows_of(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def by_transformers(values: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(values)))
    config.standardize_rope_params()  # as its models do once more before they use it
    return config


@pytest.mark.parametrize("knobs", LIKE_TRANSFORMERS.values(), ids=list(LIKE_TRANSFORMERS))
def test_a_config_means_what_it_means_to_transformers(knobs: dict[str, Any]) -> None:
    values = {**CONFIG, **knobs}
    ours, theirs = geometry_of_config(values), by_transformers(values)
    assert ours.layers == theirs.num_hidden_layers
    assert ours.hidden == theirs.hidden_size
    assert ours.heads == theirs.num_attention_heads
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or ours.hidden // ours.heads)
    assert ours.intermediate == theirs.intermediate_size
    assert ours.vocab == theirs.vocab_size
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.activation == theirs.hidden_act
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.windows == windows_of(theirs)
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == theirs.rope_parameters["rope_type"]
    assert ours.rope.parameters == {
        key: value
        for key, value in theirs.rope_parameters.items()
        if key not in ("rope_theta", "rope_type", "type")
    }


@pytest.mark.parametrize("knobs", LIKE_TRANSFORMERS.values(), ids=list(LIKE_TRANSFORMERS))
def test_what_transformers_5_saves_means_the_same(tmp_path: Path, knobs: dict[str, Any]) -> None:
    values = {**CONFIG, **knobs}
    by_transformers(values).save_pretrained(tmp_path)
    assert geometry_of_hf_dir(tmp_path) == geometry_of_config(values)


@pytest.mark.parametrize("missing", ["num_key_value_heads"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_key_left_out_is_what_transformers_takes_for_it(model_type: str, missing: str) -> None:
    values = {**CONFIG, "model_type": model_type, "num_attention_heads": 32, "hidden_size": 256}
    del values[missing]
    assert geometry_of_config(values).kv_heads == by_transformers(values).num_key_value_heads


@pytest.mark.parametrize("knobs", LIKE_TRANSFORMERS.values(), ids=list(LIKE_TRANSFORMERS))
def test_json_round_trip(knobs: dict[str, Any]) -> None:
    geometry = small_geometry(**knobs)
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


def test_the_tiny_checkpoint() -> None:
    geometry = geometry_of_hf_dir(TINY)
    assert (geometry.family, geometry.layers, geometry.hidden) == ("qwen2", 3, 256)
    assert (geometry.heads, geometry.kv_heads, geometry.head_dim) == (8, 2, 32)
    assert geometry.qkv_bias
    assert not geometry.output_bias
    assert geometry.rope == Rope(theta=1e6)


SIZES = [
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
]
ABSURD = [0, -1, 10**9, 10**12, 10**400, 2.0, 2.5, "2", True, math.nan, math.inf, [2], {}]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:12])
def test_an_absurd_size_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(GeometryError) as refusal:
        geometry_of_config({**CONFIG, key: value}, "model/config.json")
    assert refusal.value.where == "model/config.json"


@pytest.mark.parametrize("key", [key for key in CONFIG if key != "model_type"])
def test_a_missing_key_is_refused_or_has_the_default_of_transformers(key: str) -> None:
    values = {name: value for name, value in CONFIG.items() if name != key}
    if key in ("num_key_value_heads", "max_position_embeddings"):
        geometry_of_config(values)
    else:
        with pytest.raises(GeometryError, match=f"has no '{key}'"):
            geometry_of_config(values)


def test_absurd_sizes_are_refused_before_anything_is_allocated() -> None:
    script = """
from apr_falsify.errors import GeometryError
from apr_falsify.model.geometry import geometry_of_config
import json
config = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for key, value in (("num_hidden_layers", 10**9), ("hidden_size", 10**12), ("vocab_size", 10**15)):
    for model_type in ("llama", "mistral", "qwen2"):
        try:
            geometry_of_config({**config, "sliding_window": 3, "model_type": model_type, key: value})
        except GeometryError:
            print("refused")
"""
    done = run_script(script, json.dumps(CONFIG))
    assert done.stdout.split() == ["refused"] * 9, done.stderr


REFUSED: dict[str, dict[str, Any]] = {
    "heads-not-shared-evenly": {"num_key_value_heads": 3},
    "odd-head-dim": {"head_dim": 5},
    "eps-negative": {"rms_norm_eps": -1e-5},
    "eps-nan": {"rms_norm_eps": math.nan},
    "eps-text": {"rms_norm_eps": "1e-5"},
    "unknown-activation": {"hidden_act": "quick_gelu"},
    "activation-null": {"hidden_act": None},
    "activation-list": {"hidden_act": ["silu"]},
    "bias-as-number": {"attention_bias": 1},
    "tied-as-text": {"tie_word_embeddings": "false"},
    "window-zero": {"model_type": "mistral", "sliding_window": 0},
    "window-float": {"model_type": "mistral", "sliding_window": 3.0},
    "window-flag-text": {"model_type": "qwen2", "use_sliding_window": "yes"},
    "too-few-layer-types": {
        "model_type": "qwen2",
        "sliding_window": 3,
        "use_sliding_window": True,
        "layer_types": ["full_attention"],
    },
    "unknown-layer-type": {
        "model_type": "qwen2",
        "sliding_window": 3,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "chunked_attention"],
    },
    "layer-types-text": {
        "model_type": "qwen2",
        "sliding_window": 3,
        "use_sliding_window": True,
        "layer_types": "full_attention",
    },
    "theta-zero": {"rope_theta": 0},
    "theta-text": {"rope_theta": "1e4"},
    "theta-list": {"rope_theta": [1e4]},
    "theta-infinite": {"rope_theta": math.inf},
    "theta-beyond-a-float": {"rope_theta": 10**400},
    "scaling-list": {"rope_scaling": [1]},
    "scaling-text": {"rope_scaling": "linear"},
    "scaling-by-layer-type": {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
    "scaling-unknown": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "scaling-type-list": {"rope_scaling": {"type": ["linear"]}},
    "linear-without-factor": {"rope_scaling": {"type": "linear"}},
    "linear-factor-zero": {"rope_scaling": {"type": "linear", "factor": 0}},
    "linear-factor-nan": {"rope_scaling": {"type": "linear", "factor": math.nan}},
    "llama3-bands-swapped": {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
    "llama3-bands-equal": {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
    "yarn-theta-one": {"rope_scaling": YARN, "rope_theta": 1.0},
    "yarn-context-zero": {"rope_scaling": {**YARN, "original_max_position_embeddings": 0}},
    "yarn-beta-negative": {"rope_scaling": {**YARN, "beta_fast": -1}},
    "partial-rotary": {"partial_rotary_factor": 0.5},
    "partial-rotary-within": {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}},
}


@pytest.mark.parametrize("knobs", REFUSED.values(), ids=list(REFUSED))
def test_a_config_without_a_formula_here_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(GeometryError) as refusal:
        geometry_of_config({**CONFIG, **knobs}, "config.json")
    assert refusal.value.where == "config.json"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from([*CONFIG, "rope_scaling", "rope_theta", "layer_types", "head_dim"]), value=JUNK)
def test_any_value_of_any_key_is_taken_or_refused_by_type(key: str, value: object) -> None:
    qwen = {**CONFIG, "model_type": "qwen2", "use_sliding_window": True}
    for config in (CONFIG, qwen):
        with suppress(AprFalsifyError):
            geometry_of_config({**config, key: value})


@pytest.mark.parametrize("value", [None, 3, ["llama"], {}])
def test_a_model_type_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(GeometryError, match="model_type"):
        geometry_of_config({**CONFIG, "model_type": value})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "no JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"hidden_size": 8, "hidden_size": 16}', "is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "no JSON"),
    ],
)
def test_a_garbled_config_is_refused_by_name(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=what) as refusal:
        read_config(tmp_path)
    assert refusal.value.where == str(tmp_path / "config.json")


def test_a_missing_config_is_refused_with_what_to_point_to(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json") as refusal:
        geometry_of_hf_dir(tmp_path)
    assert "tokenizer.json" in refusal.value.remedy


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "auto_map": {"AutoModel": "modeling_x.X"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="own code") as refusal:
        geometry_of_hf_dir(tmp_path)
    assert "trust_remote_code" in refusal.value.expected


@pytest.mark.parametrize(
    "data",
    [None, [], "ab", 3, {}, {"rope": None}, {"rope": "ab"}, {"rope": [1]}],
    ids=repr,
)
def test_geometry_json_of_the_wrong_type_is_refused(data: Any) -> None:
    with pytest.raises(GeometryError) as refusal:
        Geometry.from_json(data, "trace.json")
    assert refusal.value.where == "trace.json"


@given(key=st.sampled_from(sorted(small_geometry().to_json())), value=JUNK)
@settings(max_examples=1000, deadline=None)
def test_any_value_of_any_field_of_geometry_json_is_taken_or_refused(key: str, value: object) -> None:
    with suppress(GeometryError, UnknownFamilyError):
        Geometry.from_json({**small_geometry().to_json(), key: value}, "trace.json").dims(3)


def test_layers_of_the_model_are_accepted_and_others_refused_with_a_command() -> None:
    geometry = small_geometry()
    assert geometry.check_layers(range(0, 2)) == range(0, 2)
    for layers in (range(0, 3), range(2, 3), range(-1, 1), range(0, 2**70)):
        with pytest.raises(LayerRangeError) as refusal:
            geometry.check_layers(layers)
        assert "0..2" in refusal.value.expected
        assert refusal.value.remedy.endswith("..2")
