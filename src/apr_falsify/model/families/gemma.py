"""Gemma 2 and 3 (Gemma Team 2024, 2025): norms before and after each block, soft-caps, scaled embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf
from apr_falsify.model.graph import Pick
from apr_falsify.model.names import HF_GEMMA2, HF_QK_NORM, gguf_names
from apr_falsify.model.rope import Rope
from apr_falsify.model.settings import Config, attention_bias, query_scalar, softcap, window_by_pattern

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def _common(config: Config) -> Mapping[str, Any]:
    return {
        **attention_bias(config),
        "embed_scale": math.sqrt(max(config.whole("hidden_size"), 1)),
        "attn_scales": query_scalar(config),
        "final_softcap": softcap(config, "final_logit_softcapping"),
    }


def _common_of_gguf(gguf: Gguf, layers_of_27b: int) -> Mapping[str, Any]:
    """Read what both have; llama.cpp knows the scale of the scores by the number of layers."""
    width = gguf.head_dim
    if gguf.layers == layers_of_27b:
        width = gguf.whole("embedding_length") // gguf.whole("attention.head_count")
    return {
        "embed_scale": math.sqrt(gguf.whole("embedding_length")),
        "attn_scales": (width**-0.5,) * gguf.layers,
    }


def _gemma2_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {
        **_common_of_gguf(gguf, 46),
        "windows": gguf_settings.windows(gguf, 2),
        "attn_softcap": gguf_settings.softcap(gguf, "attn_logit_softcapping", 50.0),
        "final_softcap": gguf_settings.softcap(gguf, "final_logit_softcapping", 30.0),
    }


def _gemma3_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {
        **_common_of_gguf(gguf, 62),
        "windows": gguf_settings.windows(gguf, 6),
        "final_softcap": gguf_settings.softcap(gguf, "final_logit_softcapping"),
        "rope": replace(gguf.rope(partial=False), theta=gguf.number("rope.freq_base", 1e6)),
        "local_rope": Rope(theta=gguf.number("rope.freq_base_swa", 1e4)),
    }


GEMMA2 = Family(
    name="gemma2",
    title="Gemma 2",
    model_types=("gemma2",),
    gguf_architectures=("gemma2",),
    weights=HF_GEMMA2,
    gguf_weights=gguf_names(HF_GEMMA2),
    gguf_settings=_gemma2_of_gguf,
    layer=partial(decoder_layer, post_norms=True),
    settings=lambda config: {
        **_common(config),
        "windows": window_by_pattern(config, 2),
        "attn_softcap": softcap(config, "attn_logit_softcapping"),
    },
    norm_offset=1.0,
    config_keys={"hidden_act": "hidden_activation"},
    config_defaults={
        **_DEFAULTS,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)

GEMMA3 = Family(
    name="gemma3",
    title="Gemma 3 (text)",
    model_types=("gemma3_text",),
    gguf_architectures=("gemma3",),
    weights={**HF_GEMMA2, **HF_QK_NORM},
    gguf_weights=gguf_names({**HF_GEMMA2, **HF_QK_NORM}),
    gguf_settings=_gemma3_of_gguf,
    layer=partial(decoder_layer, post_norms=True, qk_norm=HEAD, qk_norm_at=Pick.HEADS),
    # attn_logit_softcapping is stored in its configs, and never used.
    settings=lambda config: {**_common(config), "windows": window_by_pattern(config, 6)},
    norm_offset=1.0,
    local_rope=True,
    config_keys={"hidden_act": "hidden_activation"},
    config_defaults={**_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
)
