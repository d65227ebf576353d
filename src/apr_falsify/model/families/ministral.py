"""Ministral (Mistral AI 2024): a Mistral whose window is on the layers that ``layer_types`` names."""

from __future__ import annotations

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, without
from apr_falsify.model.settings import window_where

MINISTRAL = Family(
    name="ministral",
    title="Ministral",
    model_types=("ministral",),
    weights=without(HF_DECODER, *(role for role in HF_DECODER if role.endswith("_bias"))),
    settings=lambda config: {"windows": window_where(config, lambda layer: True)},
    config_defaults={"num_key_value_heads": 8, "sliding_window": 4096, "rms_norm_eps": 1e-6},
)
