"""Qwen2, Qwen2.5 (Yang et al. 2024), Qwen3 and its mixture of experts (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import (
    HF_DECODER,
    HF_MIXTURE,
    HF_QK_NORM,
    MLP_BIASES,
    gguf_names,
    without,
)
from apr_falsify.model.settings import attention_bias, experts, window_by_layer, window_where_used

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family(
    name="qwen2",
    title="Qwen2 / Qwen2.5",
    model_types=("qwen2",),
    gguf_architectures=("qwen2",),
    weights=HF_DECODER,
    in_apr=True,
    gguf_weights=gguf_names(HF_DECODER),
    settings=lambda config: {"qkv_bias": True, "windows": window_by_layer(config)},
    config_defaults=_DEFAULTS,
)

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    weights={**HF_DECODER, **HF_QK_NORM},
    in_apr=True,
    gguf_weights=gguf_names({**HF_DECODER, **HF_QK_NORM}),
    layer=partial(decoder_layer, qk_norm=HEAD),
    settings=lambda config: {**attention_bias(config), "windows": window_by_layer(config)},
    config_defaults={**_DEFAULTS, "head_dim": 128},
)

_MIXTURE_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *MLP_BIASES),
    **HF_QK_NORM,
    **HF_MIXTURE,
}

QWEN3_MOE = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    model_types=("qwen3_moe",),
    gguf_architectures=("qwen3moe",),
    weights=_MIXTURE_NAMES,
    gguf_weights=gguf_names(_MIXTURE_NAMES),
    gguf_settings=lambda gguf: gguf_settings.experts(gguf, normed=True),
    layer=partial(decoder_layer, qk_norm=HEAD),
    settings=lambda config: {
        **attention_bias(config),
        **experts(config),
        "windows": window_where_used(config),
    },
    config_defaults={"num_key_value_heads": 4, "sliding_window": 4096, "num_experts_per_tok": 8},
)
