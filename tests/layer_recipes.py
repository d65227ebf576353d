"""Recipes of the families whose layers differ in kind: chunks, recurrent layers, convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recipe import MOE, OF_HIDDEN, Recipe

_LLAMA4: Mapping[str, Any] = {
    "intermediate_size": 40,
    "intermediate_size_mlp": 80,
    "num_local_experts": 6,
    "attention_chunk_size": 5,
    "floor_scale": 4,
    "attn_scale": 0.3,
    "pad_token_id": None,
}

_CONV: Mapping[str, Any] = {
    **OF_HIDDEN,
    "rms_norm_eps": None,
    "norm_eps": 1e-5,
    "pad_token_id": None,
    "layer_types": ["conv", "full_attention", "conv"],
}
_MROPE: Mapping[str, Any] = {
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4]},
}
_DELTA: Mapping[str, Any] = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}

RECIPES: Mapping[str, Recipe] = {
    # Layer 0 is dense, 1 a mixture, 2 has no RoPE.
    "llama4_text": Recipe(
        family="llama4_text",
        config={
            **_LLAMA4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    # Layers 0 and 2 have a gated delta rule, layer 1 attention; all are mixtures.
    "qwen3_next": Recipe(
        family="qwen3_next",
        config={
            **_DELTA,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
            "full_attention_interval": 2,
        },
    ),
    "qwen3_next-biased-dense-layer-tied-one-head-each": Recipe(
        family="qwen3_next",
        config={
            **_DELTA,
            "linear_conv_kernel_dim": 4,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "mlp_only_layers": [0],
            "full_attention_interval": 2,
        },
    ),
    "qwen3_5_text": Recipe(family="qwen3_5_text", config={**_DELTA, "full_attention_interval": 2}),
    "qwen3_5_moe_text": Recipe(
        family="qwen3_5_moe_text",
        config={
            **_DELTA,
            **MOE,
            "shared_expert_intermediate_size": 56,
            "full_attention_interval": 2,
        },
    ),
    # Layer 1 has attention, the others a short convolution.
    "lfm2": Recipe(
        family="lfm2",
        config={**_CONV, "intermediate_size": 120, "block_multiple_of": 16},
    ),
    "lfm2-biased-untied": Recipe(
        family="lfm2",
        config={
            **_CONV,
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2_moe": Recipe(
        family="lfm2_moe",
        config={
            **_CONV,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.5,
        },
    ),
    # Text models within ones that see.
    "qwen2_5_vl_text": Recipe(family="qwen2_5_vl_text", within="qwen2_5_vl", config={**_MROPE, **OF_HIDDEN}),
    "qwen3_vl_text": Recipe(
        family="qwen3_vl_text", within="qwen3_vl", config={**_MROPE, "tie_word_embeddings": True}
    ),
    "qwen3_vl_moe_text": Recipe(
        family="qwen3_vl_moe_text", within="qwen3_vl_moe", config={**_MROPE, **MOE, "pad_token_id": None}
    ),
    # As the models of 128 experts: no norm of q and k. Layer 1 has no RoPE.
    "llama4_text-unnormed-biased-tied": Recipe(
        family="llama4_text",
        config={
            **_LLAMA4,
            "num_local_experts": 7,
            "num_experts_per_tok": 1,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 6,
            "use_qk_norm": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
