"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023): parallel layers, LayerNorm, half of each head rotated, biases."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import layer_norm_eps
from apr_falsify.model.names import HF_DECODER, HF_NORM_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, refuse

_LAYER = "model.layers.{n}."


def _settings(config: Config) -> Mapping[str, Any]:
    refuse(config, "qk_layernorm")
    biases = ("qkv_bias", "output_bias", "mlp_bias", "head_bias")
    return {**dict.fromkeys(biases, True), "parallel": True}


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, "gate", "gate_bias", "ffn_norm"),
    **without(HF_NORM_BIASES, "ffn_norm_bias"),
    "o": _LAYER + "self_attn.dense.weight",
    "o_bias": _LAYER + "self_attn.dense.bias",
    "up": _LAYER + "mlp.fc1.weight",
    "up_bias": _LAYER + "mlp.fc1.bias",
    "down": _LAYER + "mlp.fc2.weight",
    "down_bias": _LAYER + "mlp.fc2.bias",
    "final_norm": "model.final_layernorm.weight",
    "final_norm_bias": "model.final_layernorm.bias",
    "lm_head_bias": "lm_head.bias",
}

PHI = Family(
    name="phi",
    title="Phi-1 / Phi-2",
    model_types=("phi",),
    gguf_architectures=("phi2",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=lambda gguf: {**layer_norm_eps(gguf), "parallel": True},
    layer=partial(decoder_layer, norm="layer_norm", gated=False, activation_at=".mlp.activation_fn"),
    ends=partial(decoder_ends, norm="layer_norm"),
    settings=_settings,
    partial_rotary=True,
    config_keys={"rms_norm_eps": "layer_norm_eps"},
    config_defaults={
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "partial_rotary_factor": 0.5,
    },
)
