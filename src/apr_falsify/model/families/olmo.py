"""OLMo 2 (OLMo Team 2024): no norm before a block but one after it, and a norm over all of q and of k."""

from __future__ import annotations

from functools import partial

from apr_falsify.model.blocks import WHOLE, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import GGUF_DECODER, GGUF_QK_NORM, HF_DECODER, HF_QK_NORM, without
from apr_falsify.model.settings import attention_bias

_BEFORE = ("attn_norm", "ffn_norm", "gate_bias", "up_bias", "down_bias")

OLMO2 = Family(
    name="olmo2",
    title="OLMo 2",
    model_types=("olmo2",),
    gguf_architectures=("olmo2",),
    weights={
        **without(HF_DECODER, *_BEFORE),
        **HF_QK_NORM,
        "attn_post_norm": "model.layers.{n}.post_attention_layernorm.weight",
        "ffn_post_norm": "model.layers.{n}.post_feedforward_layernorm.weight",
    },
    gguf_weights={
        **without(GGUF_DECODER, *_BEFORE),
        **GGUF_QK_NORM,
        "attn_post_norm": "blk.{n}.post_attention_norm.weight",
        "ffn_post_norm": "blk.{n}.post_ffw_norm.weight",
    },
    layer=partial(decoder_layer, pre_norms=False, post_norms=True, qk_norm=WHOLE),
    settings=attention_bias,
    config_defaults={"rms_norm_eps": 1e-5},
)
