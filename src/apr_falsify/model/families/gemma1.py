"""Gemma 1 (Gemma Team 2024): a Llama with scaled embeddings, 1 + weight in its norms, and tanh-gelu."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, attention_bias


def _settings(config: Config) -> Mapping[str, Any]:
    stated = config.get("hidden_act")
    return {
        **attention_bias(config),
        "embed_scale": math.sqrt(max(config.whole("hidden_size"), 1)),
        # Its first configs say "gelu" and mean this; transformers reads them so.
        "activation": "gelu_pytorch_tanh" if stated == "gelu" else stated,
    }


GEMMA = Family(
    name="gemma",
    title="Gemma 1",
    model_types=("gemma",),
    gguf_architectures=("gemma",),
    weights=without(HF_DECODER, *MLP_BIASES),
    gguf_weights=gguf_names(without(HF_DECODER, *MLP_BIASES)),
    gguf_settings=lambda gguf: {"embed_scale": math.sqrt(gguf.whole("embedding_length"))},
    settings=_settings,
    norm_offset=1.0,
    config_defaults={
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
)
