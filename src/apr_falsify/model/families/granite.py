"""Granite 3 (Granite Team 2024): a Llama with multipliers on embedding, scores, residual sums and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf
from apr_falsify.model.names import HF_DECODER, gguf_names
from apr_falsify.model.settings import Config, attention_bias, same_scale


def _settings(config: Config) -> Mapping[str, Any]:
    return {
        **attention_bias(config),
        "mlp_bias": config.flag("mlp_bias"),
        "embed_scale": config.number("embedding_multiplier"),
        "attn_scales": same_scale(config, config.number("attention_multiplier")),
        "residual_scale": config.number("residual_multiplier"),
        "logit_scale": 1 / config.number("logits_scaling"),
    }


def of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read the multipliers; one of 0 is the usual one, as llama.cpp takes it."""
    rotated = gguf.flag("rope.scaling.finetuned", True)
    return {
        "embed_scale": gguf.number("embedding_scale", 0.0) or 1.0,
        "attn_scales": (gguf.number("attention.scale", 0.0) or gguf.head_dim**-0.5,) * gguf.layers,
        "residual_scale": gguf.number("residual_scale", 0.0) or 1.0,
        "logit_scale": 1 / (gguf.number("logit_scale") or 1.0),
        "rotated": () if rotated else (False,) * gguf.layers,
    }


GRANITE = Family(
    name="granite",
    title="Granite 3",
    model_types=("granite",),
    gguf_architectures=("granite",),
    weights=HF_DECODER,
    gguf_weights=gguf_names(HF_DECODER),
    gguf_settings=of_gguf,
    gguf_interleaved=True,
    settings=_settings,
    config_defaults={
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)
