"""SmolLM3 (Bakouch et al. 2025): a Llama in which each fourth layer rotates nothing (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, gguf_names
from apr_falsify.model.settings import Config, attention_bias, rotated_layers, window_where


def _settings(config: Config) -> Mapping[str, Any]:
    rotated, windowed = rotated_layers(config), config.flag("use_sliding_window")
    return {
        **attention_bias(config),
        "mlp_bias": config.flag("mlp_bias"),
        "rotated": rotated,
        "windows": window_where(config, lambda layer: windowed and not rotated[layer]),
    }


SMOLLM3 = Family(
    name="smollm3",
    title="SmolLM3",
    model_types=("smollm3",),
    gguf_architectures=("smollm3",),
    weights=HF_DECODER,
    gguf_weights=gguf_names(HF_DECODER),
    # The interval is not in the file; llama.cpp has it in its code.
    gguf_settings=lambda gguf: {"rotated": tuple((layer + 1) % 4 != 0 for layer in range(gguf.layers))},
    gguf_interleaved=True,
    settings=_settings,
    config_defaults={
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
)
