"""Granite 3 (Granite Team 2024): a Llama with multipliers on embedding, scores, residual sums and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER
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


GRANITE = Family(
    name="granite",
    title="Granite 3",
    model_types=("granite",),
    weights=HF_DECODER,
    settings=_settings,
    config_defaults={
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)
