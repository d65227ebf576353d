"""dots.llm1 (rednote-hilab 2025): the attention of Qwen3, dense layers, then the mixture of DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_CORRECTED_MIXTURE, HF_DECODER, HF_QK_NORM, MLP_BIASES, without
from apr_falsify.model.settings import Config, attention_bias, corrected_experts, window_where


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
    weights={**without(HF_DECODER, *MLP_BIASES), **HF_QK_NORM, **HF_CORRECTED_MIXTURE},
    layer=partial(decoder_layer, qk_norm=HEAD),
    settings=_settings,
    kept_in_f32=("router_correction",),
    config_defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 62},
)
