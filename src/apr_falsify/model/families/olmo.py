"""OLMo 2 and 3 (OLMo Team 2024, 2025): a norm after a block, none before it, one over all of q and of k."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import WHOLE, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, windows
from apr_falsify.model.names import HF_DECODER, HF_QK_NORM, gguf_names, without
from apr_falsify.model.rope import Rope
from apr_falsify.model.settings import attention_bias, window_where

_BEFORE = ("attn_norm", "ffn_norm", "gate_bias", "up_bias", "down_bias")

_HF = {
    **without(HF_DECODER, *_BEFORE),
    **HF_QK_NORM,
    "attn_post_norm": "model.layers.{n}.post_attention_layernorm.weight",
    "ffn_post_norm": "model.layers.{n}.post_feedforward_layernorm.weight",
}
_LAYER = partial(decoder_layer, pre_norms=False, post_norms=True, qk_norm=WHOLE)


def _olmo3_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    rope = gguf.rope(partial=False)
    return {
        "windows": windows(gguf, 4),
        "rope": rope,
        "local_rope": Rope(theta=gguf.number("rope.freq_base_swa", rope.theta)),
    }


OLMO2 = Family(
    name="olmo2",
    title="OLMo 2",
    model_types=("olmo2",),
    gguf_architectures=("olmo2",),
    weights=_HF,
    gguf_weights=gguf_names(_HF),
    layer=_LAYER,
    settings=attention_bias,
    config_defaults={"rms_norm_eps": 1e-5},
)

OLMO3 = Family(
    name="olmo3",
    title="OLMo 3",
    model_types=("olmo3",),
    gguf_architectures=("olmo2",),
    gguf_key="attention.sliding_window",
    weights=_HF,
    gguf_weights=gguf_names(_HF),
    gguf_settings=_olmo3_of_gguf,
    layer=_LAYER,
    settings=lambda config: {
        **attention_bias(config),
        "windows": window_where(config, lambda layer: (layer + 1) % 4 != 0),
    },
    local_rope=True,  # its scaling is for the layers without a window
    config_defaults={
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "rope_theta": 5e5,
        "rope_local_base_freq": 5e5,
    },
)
