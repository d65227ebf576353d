"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024): a mixture, and an expert for all tokens behind a sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, HF_MIXTURE, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, experts, window_where

_SHARED = "model.layers.{n}.mlp.shared_expert."


def _settings(config: Config) -> Mapping[str, Any]:
    full = config.whole("max_window_layers")
    windows = window_where(config, lambda layer: layer % 2 == 0 and layer < full)
    return {
        **experts(config),
        "qkv_bias": config.flag("qkv_bias"),
        "shared_intermediate": config["shared_expert_intermediate_size"],
        "shared_gated": True,
        "windows": windows if config.flag("use_sliding_window") else (),
    }


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *MLP_BIASES, "o_bias"),
    **HF_MIXTURE,
    "shared_gate": _SHARED + "gate_proj.weight",
    "shared_up": _SHARED + "up_proj.weight",
    "shared_down": _SHARED + "down_proj.weight",
    "shared_router": "model.layers.{n}.mlp.shared_expert_gate.weight",
}

QWEN2_MOE = Family(
    name="qwen2_moe",
    title="Qwen2-MoE",
    model_types=("qwen2_moe",),
    gguf_architectures=("qwen2moe",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=lambda gguf: {
        **gguf_settings.experts(gguf, normed=False),
        "shared_intermediate": gguf["expert_shared_feed_forward_length"],
        "shared_gated": True,
    },
    settings=_settings,
    config_defaults={
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "qkv_bias": True,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
)
