"""StableLM (Bellagente et al. 2024): LayerNorm, a quarter of each head rotated; layers may be parallel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import layer_norm_eps
from apr_falsify.model.names import HF_DECODER, HF_NORM_BIASES, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, refuse


def _settings(config: Config) -> Mapping[str, Any]:
    refuse(config, "qk_layernorm")
    return {
        "qkv_bias": config.flag("use_qkv_bias"),
        "parallel": config.flag("use_parallel_residual"),
    }


_NAMES = {**without(HF_DECODER, *MLP_BIASES, "o_bias"), **HF_NORM_BIASES}

STABLELM = Family(
    name="stablelm",
    title="StableLM",
    model_types=("stablelm",),
    gguf_architectures=("stablelm",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=lambda gguf: {
        **layer_norm_eps(gguf),
        "parallel": gguf.flag("use_parallel_residual", True),
    },
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
