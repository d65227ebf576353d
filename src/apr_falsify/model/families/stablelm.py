"""StableLM (Bellagente et al. 2024): LayerNorm, a quarter of each head rotated; layers may be parallel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, HF_NORM_BIASES, MLP_BIASES, without
from apr_falsify.model.settings import Config, refuse


def _settings(config: Config) -> Mapping[str, Any]:
    refuse(config, "qk_layernorm")
    return {
        "qkv_bias": config.flag("use_qkv_bias"),
        "parallel": config.flag("use_parallel_residual"),
    }


STABLELM = Family(
    name="stablelm",
    title="StableLM",
    model_types=("stablelm",),
    weights={**without(HF_DECODER, *MLP_BIASES, "o_bias"), **HF_NORM_BIASES},
    layer=partial(decoder_layer, norm="layer_norm"),
    ends=partial(decoder_ends, norm="layer_norm"),
    settings=_settings,
    partial_rotary=True,
    config_keys={"rms_norm_eps": "layer_norm_eps"},
    config_defaults={
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    },
)
