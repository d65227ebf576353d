"""Cohere's Command R and R7B (2024): parallel layers, LayerNorm without a bias, neighbouring rotary pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, layer_norm_eps, windows
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, attention_bias, refuse, window_by_pattern

_NAMES = without(HF_DECODER, "ffn_norm", *MLP_BIASES)
_LAYER = partial(decoder_layer, norm="layer_norm", norm_bias=False)
_ENDS = partial(decoder_ends, norm="layer_norm", norm_bias=False)
_DEFAULTS: Mapping[str, Any] = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}


def _common(config: Config) -> Mapping[str, Any]:
    refuse(config, "use_qk_norm")
    return {**attention_bias(config), "parallel": True, "logit_scale": config.number("logit_scale")}


def _in_windows(config: Config) -> Mapping[str, Any]:
    """Say that only the layers with a window are rotated."""
    windows = window_by_pattern(config, 4)
    return {"windows": windows, "rotated": tuple(size is not None for size in windows)}


def _common_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {**layer_norm_eps(gguf), "parallel": True, "logit_scale": gguf.number("logit_scale")}


def _cohere2_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    sizes = windows(gguf, 4)
    return {
        **_common_of_gguf(gguf),
        "windows": sizes,
        "rotated": tuple(size is not None for size in sizes),
    }


COHERE = Family(
    name="cohere",
    title="Cohere (Command R)",
    model_types=("cohere",),
    gguf_architectures=("command-r",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_common_of_gguf,
    gguf_interleaved=True,
    layer=_LAYER,
    ends=_ENDS,
    settings=_common,
    interleaved=True,
    config_keys={"rms_norm_eps": "layer_norm_eps"},
    config_defaults={**_DEFAULTS, "rope_theta": 5e5},
)

COHERE2 = Family(
    name="cohere2",
    title="Cohere 2 (Command R7B)",
    model_types=("cohere2",),
    gguf_architectures=("cohere2",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_cohere2_of_gguf,
    gguf_interleaved=True,
    layer=_LAYER,
    ends=_ENDS,
    settings=lambda config: {**_common(config), **_in_windows(config)},
    interleaved=True,
    config_keys={"rms_norm_eps": "layer_norm_eps"},
    config_defaults={**_DEFAULTS, "sliding_window": 4096},
)
