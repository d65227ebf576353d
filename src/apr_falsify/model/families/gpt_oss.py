"""gpt-oss (OpenAI 2025): attention sinks, windows in every other layer, biased experts with a clamped SwiGLU.

Its published checkpoints hold the experts in MXFP4 blocks (``formats/quantised/mxfp4.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, windows
from apr_falsify.model.gguf_settings import experts as experts_of_gguf
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, attention_bias, experts, window_by_pattern

_MIXTURE = "model.layers.{n}.mlp."
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _settings(config: Config) -> Mapping[str, Any]:
    return {
        **attention_bias(config),
        **experts(config),
        # Its softmax over the chosen experts alone is that over all, made to sum to 1.
        "norm_topk_prob": True,
        "windows": window_by_pattern(config, 2),
        "sinks": True,
        "expert_bias": True,
        "expert_limit": config.number("swiglu_limit"),
        "expert_alpha": config.number("swiglu_alpha"),
        "expert_shift": 1.0,
    }


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, "gate", "up", "down", *MLP_BIASES),
    "sinks": "model.layers.{n}.self_attn.sinks",
    "router": _MIXTURE + "router.weight",
    "router_bias": _MIXTURE + "router.bias",
    "expert_gate": _MIXTURE + "experts.gate_up_proj",
    "expert_gate_bias": _MIXTURE + "experts.gate_up_proj_bias",
    "expert_up": _MIXTURE + "experts.gate_up_proj",
    "expert_up_bias": _MIXTURE + "experts.gate_up_proj_bias",
    "expert_down": _MIXTURE + "experts.down_proj",
    "expert_down_bias": _MIXTURE + "experts.down_proj_bias",
}


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read what a file says; the clamp of the activation stands in llama.cpp's code."""
    rope = gguf.rope(partial=False)
    whole_ramp = {**rope.parameters, "truncate": 0.0} if rope.kind == "yarn" else rope.parameters
    return {
        **experts_of_gguf(gguf, normed=True),
        "norm_topk_prob": True,
        "rope": replace(rope, parameters=whole_ramp),
        "windows": windows(gguf, 2),
        "sinks": True,
        "expert_bias": True,
        "expert_limit": 7.0,
        "expert_alpha": 1.702,
        "expert_shift": 1.0,
    }


GPT_OSS = Family(
    name="gpt_oss",
    title="gpt-oss",
    model_types=("gpt_oss",),
    gguf_architectures=("gpt-oss",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES, {"ffn_norm": "post_attention_norm"}),
    gguf_settings=_of_gguf,
    settings=_settings,
    softmax_upcast=False,
    expert_columns={
        "expert_gate": (0, 2),
        "expert_gate_bias": (0, 2),
        "expert_up": (1, 2),
        "expert_up_bias": (1, 2),
        "expert_down": (0, 1),
        "expert_down_bias": (0, 1),
    },
    config_keys={"moe_intermediate_size": "intermediate_size"},
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "attention_bias": True,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
        "rope_parameters": _ROPE,
    },
)
