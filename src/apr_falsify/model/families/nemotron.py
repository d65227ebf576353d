"""Nemotron (Parmar et al. 2024) and Jais 2 (2025): LayerNorm, no gate, the square of relu.

Nemotron's norms multiply with 1 + weight, and it rotates half of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import layer_norm_eps
from apr_falsify.model.names import HF_DECODER, HF_NORM_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, attention_bias

_NAMES = {**without(HF_DECODER, "gate", "gate_bias"), **HF_NORM_BIASES}
_LAYER = partial(decoder_layer, norm="layer_norm", gated=False)
_ENDS = partial(decoder_ends, norm="layer_norm")


def _settings(config: Config) -> Mapping[str, Any]:
    return {**attention_bias(config), "mlp_bias": config.flag("mlp_bias")}


NEMOTRON = Family(
    name="nemotron",
    title="Nemotron",
    model_types=("nemotron",),
    gguf_architectures=("nemotron",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=layer_norm_eps,
    layer=_LAYER,
    ends=_ENDS,
    settings=_settings,
    norm_offset=1.0,
    offset_rounded=True,
    partial_rotary=True,
    config_keys={"rms_norm_eps": "norm_eps"},
    config_defaults={"norm_eps": 1e-5, "hidden_act": "relu2", "partial_rotary_factor": 0.5},
)

JAIS2 = Family(
    name="jais2",
    title="Jais 2",
    model_types=("jais2",),
    gguf_architectures=("jais2",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=layer_norm_eps,
    layer=_LAYER,
    ends=_ENDS,
    settings=_settings,
    config_keys={"rms_norm_eps": "layer_norm_eps"},
    config_defaults={
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
    },
)
