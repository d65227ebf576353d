"""A GGUF file of every family that llama.cpp converts gives the model of its checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.structure import geometry_findings
from apr_falsify.errors import AprFalsifyError, GeometryError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import FAMILIES, roles_at
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from tests.checkpoints import make_checkpoint
from tests.unit.gguf_conversion import RULES, convert
from tests.unit.gguf_models import metadata_of, write_gguf
from tests.unit.helpers import small_geometry, whole

_GEMMA = {"query_pre_attn_scalar": 24}  # llama.cpp takes the heads' width, but for the largest of each
_LLAMA4 = {
    "attention_chunk_size": 8192,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "no_rope_layers": [1, 1, 1, 0],
    "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
}
_SLIDES, _FULL = "sliding_attention", "full_attention"
CONVERTED: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "granite": (2, {}),
    "granite-biased-tied-llama3": (2, {}),
    "granitemoe": (2, {}),
    "granitemoeshared": (2, {}),
    "dots1": (2, {}),
    "glm4_moe": (2, {}),
    "glm4_moe-biased-unnormed-one-group": (2, {}),
    "olmo2": (2, {}),
    "olmo2-biased-tied-yarn": (2, {}),
    "olmo3-biased-tied-yarn": (3, {}),
    "gemma": (2, {}),
    "gemma2": (3, _GEMMA),
    "gemma3-capped-pattern": (6, {**_GEMMA, "layer_types": [_SLIDES] * 5 + [_FULL]}),
    "phi3": (2, {}),
    "phi3-longrope-partial-window": (2, {}),
    "gpt2": (2, {}),
    "qwen3_moe": (2, {}),
    "qwen2_moe": (2, {}),
    "olmoe": (2, {}),
    "mixtral": (2, {}),
    "starcoder2": (2, {}),
    "cohere": (2, {}),
    "cohere2": (4, {"layer_types": [_SLIDES] * 3 + [_FULL]}),
    "gpt_neox-serial-unbiased-tied-half": (2, {"hidden_act": "gelu"}),
    "stablelm-parallel-biased-tied": (2, {}),
    "nemotron-biased-tied": (2, {}),
    "phi": (2, {}),
    "smollm3": (4, {"no_rope_layers": [1, 1, 1, 0]}),
    "arcee": (2, {}),
    "arcee-biased-tied-yarn": (2, {}),
    "ernie4_5": (2, {}),
    "seed_oss": (2, {}),
    "seed_oss-output-biased-tied": (2, {}),
    "exaone4": (3, {}),
    "glm4": (2, {}),
    "glm": (2, {}),
    "jais2": (2, {}),
    "gpt_oss": (2, {"swiglu_limit": 7.0}),
    "minimax_m2": (2, {}),
    "ernie4_5_moe": (3, {}),
    "lfm2": (3, {}),
    "lfm2_moe": (3, {"routed_scaling_factor": 1.0}),
    "llama4_text": (4, _LLAMA4),
    "qwen2_5_vl_text": (2, {}),
    "qwen3_vl_text": (2, {}),
    "qwen3_vl_moe_text": (2, {}),
    "exaone_moe": (3, {}),
    "deepseek_v2": (2, {}),
    "deepseek_v3": (2, {}),
    "youtu": (2, {}),
}
"""Recipe -> its layers, and what of its config.json is changed to what llama.cpp has in its code."""


def both(directory: Path, recipe: str, **changed: Any) -> tuple[Model, Model]:
    """Return a checkpoint, and what is read of its GGUF file."""
    layers, edited = CONVERTED[recipe]
    checkpoint = make_checkpoint(directory / "hf", recipe, layers=layers)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **edited}))
    return open_model(checkpoint), open_model(convert(checkpoint, directory / "x.gguf", **changed))


@pytest.mark.parametrize("recipe", CONVERTED)
def test_a_converted_file_gives_the_checkpoint_s_geometry_and_weights(recipe: str, tmp_path: Path) -> None:
    original, converted = both(tmp_path, recipe)

    assert converted.geometry.family == original.geometry.family
    assert geometry_findings(original.geometry, converted.geometry) == []
    for layer in [None, *range(original.geometry.layers)]:
        assert roles_at(converted.geometry, layer) == roles_at(original.geometry, layer)
        for role in roles_at(original.geometry, layer):
            ours, theirs = (model.weights.tensor(role, layer) for model in (converted, original))
            assert np.array_equal(whole(ours), whole(theirs)), (role, layer)


@pytest.mark.parametrize(
    "recipe",
    [
        "granite",
        "gemma3-capped-pattern",
        "phi3-longrope-partial-window",
        "qwen2_moe",
        "cohere2",
        "glm4_moe",
        "gpt_oss",
        "minimax_m2",
        "ernie4_5_moe",
        "lfm2_moe",
        "llama4_text",
        "qwen3_vl_moe_text",
        "exaone_moe",
        "deepseek_v2",
        "deepseek_v3",
    ],
)
def test_a_run_of_the_converted_file_is_that_of_transformers(recipe: str, tmp_path: Path) -> None:
    original, converted = both(tmp_path, recipe)
    tokens = tuple(int(token) for token in np.random.default_rng(1).integers(0, 90, 9))
    request = Request(tokens=tokens, layers=range(original.geometry.layers), stages=tuple(STAGES))
    oracle = capture(original, request, MemorySink(), dtype="f64")
    subject = embedded.capture(converted, request, MemorySink(), dtype="f64")

    assert set(oracle.stages) == set(subject.stages)
    for key, array in oracle.stages.items():
        far = np.linalg.norm(array.data - subject.stages[key].data) / np.linalg.norm(array.data)
        assert far <= 1e-6, key


def test_every_family_with_a_gguf_architecture_is_converted_here_or_elsewhere() -> None:
    elsewhere = {"llama", "qwen2", "qwen3"}  # in test_gguf_weights.py
    ours = {family.name for family in FAMILIES if family.gguf_architectures}
    assert {family.name for family in FAMILIES if set(family.model_types) & RULES.keys()} >= ours - elsewhere


@pytest.mark.parametrize(
    ("recipe", "key", "value", "finding"),
    [
        ("granite", "residual_scale", 1.0, "residual_scale is 0.22 .*, 1 in"),
        ("granite", "attention__scale", 0.0, "attn_scales is 0.0625 in every layer"),
        ("granite", "embedding_scale", 11.0, "embed_scale is 12 .* 11 in"),
        ("granite", "logit_scale", 4.0, "logit_scale is 0.125 .* 0.25 in"),
        ("granite", "rope__scaling__finetuned", False, "rotated"),
        ("gemma2", "attn_logit_softcapping", 50.0, "attn_softcap is 3 .* 50 in"),
        ("gemma2", "attention__sliding_window", 6, "windows"),
        ("cohere2", "attention__sliding_window_pattern", 2, "rotated"),
        ("gpt_neox-serial-unbiased-tied-half", "rope__dimension_count", 6, "rope is"),
        ("olmo3-biased-tied-yarn", "rope__scaling__factor", 2.0, "rope is"),
    ],
)
def test_a_setting_that_conversion_got_wrong_is_a_finding(
    recipe: str, key: str, value: object, finding: str, tmp_path: Path
) -> None:
    original, converted = both(tmp_path, recipe, **{key: value})
    found = [each.explanation for each in geometry_findings(original.geometry, converted.geometry)]
    assert any(re.search(finding, text) for text in found), found


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("olmo2-biased-tied-yarn", "residual_scale", 0.5),
        ("starcoder2", "attention__scale", 0.5),
        ("phi3", "attention__clamp_kqv", 8.0),
        ("gemma", "final_logit_softcapping", 30.0),
        ("qwen3_moe", "expert_gating_func", 2),
        ("qwen3_moe", "expert_shared_count", 1),
        ("qwen3_moe", "expert_weights_scale", 2.5),
        ("dots1", "expert_gating_func", 1),
        ("deepseek_v2", "expert_gating_func", 3),
        ("deepseek_v2", "expert_weights_norm", True),
        ("mixtral", "attention__sliding_window", 5),
        ("ernie4_5", "rope__dimension_sections", [4, 4, 4, 0]),
        ("ernie4_5", "attention__causal", False),
        ("olmo2-biased-tied-yarn", "rope__scaling__yarn_log_multiplier", 0.1),
        ("seed_oss-output-biased-tied", "a_key_of_tomorrow", 3),
    ],
)
def test_a_key_that_has_no_formula_for_the_architecture_is_refused_by_name(
    recipe: str, key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(GeometryError) as refusal:
        both(tmp_path, recipe, **{key: value})
    said = f"{refusal.value}"
    assert key.replace("__", ".").rpartition(".")[2] in said or "later ones" in said
    assert str(refusal.value.where).endswith("x.gguf")


def test_layers_that_predict_further_tokens_are_none_of_the_model(tmp_path: Path) -> None:
    original, converted = both(tmp_path, "glm4_moe", nextn_predict_layers=1)
    assert (original.geometry.layers, converted.geometry.layers) == (2, 1)
    assert converted.geometry.mixtures == original.geometry.mixtures[:1]


def test_a_key_that_switches_something_off_is_no_obstacle(tmp_path: Path) -> None:
    off = {"attention__clamp_kqv": 0.0, "expert_count": 0, "rope__scaling__finetuned": False}
    _, converted = both(tmp_path, "seed_oss-output-biased-tied", **off)
    assert converted.geometry.family == "seed_oss"


@pytest.mark.parametrize(
    ("recipe", "architecture", "what"),
    [
        ("qwen3_moe", "llama", "expert_feed_forward_length is 40, which has no formula"),
        ("olmo2", "granite", "has no"),
        ("minimax_m2", "qwen3moe", "has no use|head_dim|dimension_count"),
        ("lfm2", "llama", "head_count_kv|kv_heads|layer_norm_rms"),
        ("gpt_oss", "mixtral", "'mixtral' is not a known model family"),
    ],
)
def test_a_file_under_another_architecture_s_name_is_refused_and_nothing_is_guessed(
    recipe: str, architecture: str, what: str, tmp_path: Path
) -> None:
    """Its tensors and keys are those of one architecture, and ``general.architecture`` names another."""
    original = make_checkpoint(tmp_path / "hf", recipe, layers=CONVERTED[recipe][0])
    path = convert(original, tmp_path / "x.gguf", named=architecture)
    with pytest.raises(AprFalsifyError, match=what) as refusal:
        open_model(path)
    assert str(refusal.value.where).endswith("x.gguf")


@pytest.mark.parametrize(
    ("recipe", "renamed", "missing"),
    [
        ("granite", ("attn_q", "attention.wq"), r"blk\.0\.attention\.wq\.weight has no use in a Granite"),
        ("minimax_m2", ("ffn_gate_exps", "ffn_gate.0"), r"blk\.0\.ffn_gate\.0\.weight has no use"),
        ("gpt_oss", ("post_attention_norm", "ffn_norm"), r"blk\.0\.ffn_norm\.weight has no use in a gpt-oss"),
        ("lfm2", ("token_embd_norm", "output_norm"), r"output_norm\.weight has no use in a LFM2"),
    ],
)
def test_an_architecture_under_another_tensor_naming_is_refused_by_name(
    recipe: str, renamed: tuple[str, str], missing: str, tmp_path: Path
) -> None:
    """As older converters called them (experts one by one), or as another architecture does."""
    original = make_checkpoint(tmp_path / "hf", recipe, layers=CONVERTED[recipe][0])
    path = convert(original, tmp_path / "x.gguf", renamed=renamed)
    with pytest.raises(GeometryError, match=missing):
        open_model(path)


def test_a_tensor_that_the_family_has_no_use_for_is_refused_by_name(tmp_path: Path) -> None:
    """Command R+ has norms of q and k in the architecture of Command R."""
    tensors = {
        "token_embd.weight": np.zeros((8, 16), np.float32),
        "blk.0.attn_q_norm.weight": np.ones((4, 4), np.float32),
    }
    metadata = metadata_of(small_geometry(), "command-r")
    more = {"command-r.attention.layer_norm_epsilon": 1e-5, "command-r.logit_scale": 0.5}
    path = write_gguf(tmp_path / "x.gguf", tensors, {**metadata, **more}, architecture="command-r")
    with pytest.raises(GeometryError, match=r"blk\.0\.attn_q_norm\.weight has no use in a Cohere"):
        open_model(path)
