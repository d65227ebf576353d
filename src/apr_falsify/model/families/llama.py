"""Llama (Touvron et al. 2023), SmolLM, and Mistral (Jiang et al. 2023)."""

from __future__ import annotations

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, gguf_names
from apr_falsify.model.settings import attention_bias, window_everywhere

LLAMA = Family(
    name="llama",
    title="Llama, SmolLM",
    model_types=("llama",),
    gguf_architectures=("llama",),
    weights=HF_DECODER,
    in_apr=True,
    gguf_weights=gguf_names(HF_DECODER),
    gguf_interleaved=True,
    settings=lambda config: {**attention_bias(config), "mlp_bias": config.flag("mlp_bias")},
)

MISTRAL = Family(
    name="mistral",
    title="Mistral",
    model_types=("mistral",),
    weights=HF_DECODER,
    in_apr=True,
    gguf_weights=gguf_names(HF_DECODER),  # llama.cpp converts Mistral under the architecture "llama"
    gguf_interleaved=True,
    settings=lambda config: {"windows": window_everywhere(config)},
    config_defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)
