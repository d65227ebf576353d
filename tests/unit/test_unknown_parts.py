"""What has no formula here, or is not there, is refused by name: layers, routers, ropes, experts, tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.errors import GeometryError, ModelError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.geometry import geometry_of_config, geometry_of_hf_dir
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink
from tests.checkpoints import make_checkpoint
from tests.unit.gguf_models import metadata_of, write_gguf
from tests.unit.helpers import CONFIG, small_geometry
from tests.unit.oracle.requests import request_for

LATENT: Mapping[str, Any] = {
    **CONFIG,
    "num_key_value_heads": CONFIG["num_attention_heads"],
    "q_lora_rank": 8,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
}
V2, V3, FLASH = ({**LATENT, "model_type": name} for name in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"))

LLAMA4: Mapping[str, Any] = {**CONFIG, "model_type": "llama4_text", "head_dim": 4}
NEXT: Mapping[str, Any] = {**CONFIG, "model_type": "qwen3_next", "head_dim": 4}

UNKNOWN: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "a layer of another kind": (
        {**FLASH, "mlp_layer_types": ["dense", "recurrent"]},
        "'recurrent'",
        "dense or sparse",
    ),
    "attention of another kind": (
        {
            **CONFIG,
            "model_type": "gpt_oss",
            "head_dim": 4,
            "layer_types": ["full_attention", "linear_attention"],
        },
        "'linear_attention'",
        "sliding_attention",
    ),
    "a router that ranks otherwise": ({**V3, "topk_method": "expert_choice"}, "topk_method", "noaux_tc"),
    "a router that scores otherwise": ({**V3, "scoring_func": "sqrtsoftplus"}, "sqrtsoftplus", "sigmoid"),
    "V3's router in V2": ({**V2, "topk_method": "noaux_tc"}, "noaux_tc", "group_limited_greedy"),
    "weights made to sum to 1 in V2": (
        {**V2, "norm_topk_prob": True},
        "norm_topk_prob",
        "False",
    ),
    "every other layer a mixture": ({**V3, "moe_layer_freq": 2}, "moe_layer_freq", "1"),
    "a rotary embedding of another kind": (
        {**V3, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "'dynamic'",
        "yarn",
    ),
    "rotary parameters by layer type": (
        {**V3, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "layer type",
        "",
    ),
    "rotary pairs that lie half-split": ({**V3, "rope_interleave": False}, "rope_interleave", "True"),
    "kv heads that are shared": ({**V3, "num_key_value_heads": 2}, "num_key_value_heads", "every head"),
    "an odd rotary width": ({**V3, "qk_rope_head_dim": 3, "qk_nope_head_dim": 7}, "3 of 10", "pairs"),
    "layers without RoPE, each none-th": (
        {**LLAMA4, "no_rope_layer_interval": 0},
        "no_rope_layer_interval is 0",
        "above 0",
    ),
    "layers that see no chunk and not all": (
        {**LLAMA4, "layer_types": ["chunked_attention", "sliding_attention"]},
        "'sliding_attention'",
        "chunked_attention",
    ),
    "attention each none-th layer": (
        {**NEXT, "full_attention_interval": 0},
        "full_attention_interval is 0",
        "above 0",
    ),
    "no latent": ({**V3, "kv_lora_rank": -1}, "kv_latent is -1", "0 to"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_has_no_formula_is_refused_by_its_name(case: str) -> None:
    config, what, expected = UNKNOWN[case]
    with pytest.raises(GeometryError) as refusal:
        geometry_of_config(config, "somewhere/config.json")
    assert what in refusal.value.what
    assert expected in (refusal.value.expected or "")
    assert refusal.value.where == "somewhere/config.json"


@pytest.mark.parametrize("config", [V2, V3, FLASH], ids=["v2", "v3", "flash"])
def test_without_these_the_same_configs_are_read(config: Mapping[str, Any]) -> None:
    assert geometry_of_config(config).kv_latent == 12


def test_experts_that_one_shard_lacks_are_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", "deepseek_v3")
    whole = load_file(path / "model.safetensors")
    lost = [name for name in whole if ".mlp.experts.5." in name and name.startswith("model.layers.2.")]
    assert len(lost) == 3
    shards = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for name, values in whole.items():
        if name not in lost:
            shards[f"model-{1 + name.startswith('model.layers.2.')}.safetensors"][name] = values
    for file, tensors in shards.items():
        save_file(tensors, path / file)
    index = {name: file for file, tensors in shards.items() for name in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (path / "model.safetensors").unlink()

    model = open_model(path)
    for run in (lambda: capture(model, request_for(model), MemorySink()), lambda: _embedded(model)):
        with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.experts\.5\.") as refusal:
            run()
        assert "incomplete" in (refusal.value.remedy or "")


def _embedded(model: Any) -> None:
    every = request_for(model, tokens=40)  # so many that each expert is given some
    embedded.capture(model, every, MemorySink())


@pytest.mark.parametrize("first", ["model.embed_tokens.weight", "token_embd.weight"])
def test_a_gguf_file_with_tensors_named_otherwise_is_refused(first: str, tmp_path: Path) -> None:
    tensors = {
        first: np.zeros((8, 16), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.zeros((16, 16), np.float32),
    }
    path = write_gguf(
        tmp_path / "x.gguf", tensors, metadata_of(small_geometry(), "llama"), architecture="llama"
    )
    with pytest.raises(
        GeometryError, match=r"token_embd\.weight|model\.layers\.0\.self_attn\.q_proj"
    ) as refusal:
        open_model(path)
    assert refusal.value.where == str(path)


@pytest.mark.parametrize(
    ("model_type", "code", "read"),
    [
        ("deepseek_v3", "modeling_deepseek.DeepseekV3ForCausalLM", True),
        ("deepseek_v3", "modeling_other.DeepseekV3ForCausalLM", False),
        ("deepseek_v2", "modeling_deepseek.DeepseekV3ForCausalLM", False),
        ("llama", "modeling_deepseek.DeepseekV3ForCausalLM", False),
    ],
)
def test_code_that_transformers_took_over_is_not_run_and_no_reason_to_refuse(
    model_type: str, code: str, read: bool, tmp_path: Path
) -> None:
    config = {**LATENT, "model_type": model_type, "auto_map": {"AutoModelForCausalLM": code}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if read:
        assert geometry_of_hf_dir(tmp_path).family == model_type
    else:
        with pytest.raises(ModelError, match="own code"):
            geometry_of_hf_dir(tmp_path)
