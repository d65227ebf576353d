"""GLM-4 (GLM Team 2024, 2025): half of each head rotated, in neighbouring pairs; gate|up in one tensor.

GLM-4-0414 (``glm4``) has a norm after each block too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import GGUF_FUSED_GATE_UP, HF_DECODER, MLP_BIASES, gguf_names, without

_LAYER = "model.layers.{n}."
_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *MLP_BIASES, "o_bias"),
    "gate": _LAYER + "mlp.gate_up_proj.weight",
    "up": _LAYER + "mlp.gate_up_proj.weight",
}
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-7,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}

GLM = Family(
    name="glm",
    title="GLM-4 9B",
    model_types=("glm",),
    gguf_architectures=("chatglm",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES, GGUF_FUSED_GATE_UP),
    gguf_interleaved=True,
    layer=partial(decoder_layer, activation_at=".mlp.activation_fn"),
    settings=lambda config: {"qkv_bias": config.flag("attention_bias")},
    partial_rotary=True,
    interleaved=True,
    fused=(("gate", "up"),),
    config_defaults=_DEFAULTS,
)

_NAMES_OF_GLM4: Mapping[str, str] = {
    **_NAMES,
    "attn_post_norm": _LAYER + "post_self_attn_layernorm.weight",
    "ffn_post_norm": _LAYER + "post_mlp_layernorm.weight",
}

GLM4 = Family(
    name="glm4",
    title="GLM-4-0414",
    model_types=("glm4",),
    gguf_architectures=("glm4",),
    weights=_NAMES_OF_GLM4,
    gguf_weights=gguf_names(_NAMES_OF_GLM4, GGUF_FUSED_GATE_UP),
    gguf_interleaved=True,
    layer=partial(decoder_layer, post_norms=True, activation_at=".mlp.activation_fn"),
    settings=lambda config: {"qkv_bias": config.flag("attention_bias")},
    partial_rotary=True,
    interleaved=True,
    fused=(("gate", "up"),),
    config_defaults=_DEFAULTS,
)
