"""dots.llm1 (rednote-hilab 2025) and Solar Open (Upstage 2025): the mixture of DeepSeek-V3 in plain decoders.

dots.llm1 has the attention of Qwen3, and dense layers first; Solar Open has that of Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import (
    HF_CORRECTED_MIXTURE,
    HF_DECODER,
    HF_QK_NORM,
    MLP_BIASES,
    gguf_names,
    without,
)
from apr_falsify.model.settings import Config, attention_bias, corrected_experts, window_where

_NAMES: Mapping[str, str] = {**without(HF_DECODER, *MLP_BIASES), **HF_QK_NORM, **HF_CORRECTED_MIXTURE}
_DENSE = ("gate", "up", "down")


def _settings(config: Config) -> Mapping[str, Any]:
    full = config.whole("max_window_layers")
    return {
        **attention_bias(config),
        **corrected_experts(config),
        "windows": window_where(config, lambda layer: layer >= full),
    }


DOTS1 = Family(
    name="dots1",
    title="dots.llm1",
    model_types=("dots1",),
    gguf_architectures=("dots1",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=gguf_settings.corrected_experts,
    layer=partial(decoder_layer, qk_norm=HEAD),
    settings=_settings,
    kept_in_f32=("router_correction",),
    config_defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 62},
)

SOLAR_OPEN = Family(
    name="solar_open",
    title="Solar Open",
    model_types=("solar_open",),
    weights={**without(HF_DECODER, *_DENSE, *MLP_BIASES, "o_bias"), **HF_CORRECTED_MIXTURE},
    settings=lambda config: {**corrected_experts(config), "qkv_bias": config.flag("attention_bias")},
    config_keys={"intermediate_size": "moe_intermediate_size"},
    kept_in_f32=("router_correction",),
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "moe_intermediate_size": 1280,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "norm_topk_prob": True,
    },
)
