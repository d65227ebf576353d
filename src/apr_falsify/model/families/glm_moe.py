"""GLM-4.5 and 4.6 (GLM Team 2025): half of each head rotated, then the mixture of DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Nodes
from apr_falsify.model.names import (
    HF_CORRECTED_MIXTURE,
    HF_DECODER,
    HF_QK_NORM,
    MLP_BIASES,
    gguf_names,
    without,
)
from apr_falsify.model.settings import corrected_experts
from apr_falsify.model.shape import Geometry

_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *MLP_BIASES, "o_bias"),
    **HF_QK_NORM,
    **HF_CORRECTED_MIXTURE,
}


def _layer(geometry: Geometry, layer: int) -> Nodes:
    return decoder_layer(geometry, layer, qk_norm=HEAD if geometry.qk_normed else "")


GLM4_MOE = Family(
    name="glm4_moe",
    title="GLM-4.5 / 4.6",
    model_types=("glm4_moe",),
    gguf_architectures=("glm4moe",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES, {"ffn_norm": "post_attention_norm"}),
    gguf_settings=lambda gguf: {
        **gguf_settings.corrected_experts(gguf),
        "qk_normed": "blk.0.attn_q_norm.weight" in gguf.tensors,
    },
    layer=_layer,
    settings=lambda config: {
        **corrected_experts(config),
        "qkv_bias": config.flag("attention_bias"),
        "qk_normed": config.flag("use_qk_norm"),
    },
    partial_rotary=True,
    kept_in_f32=("router_correction",),
    config_defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
)
