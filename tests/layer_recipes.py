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
_STATE_SPACE: Mapping[str, Any] = {
    "head_dim": None,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "pad_token_id": None,
}
_NEMOTRON_H: Mapping[str, Any] = {
    "rms_norm_eps": None,
    "layer_norm_epsilon": 1e-5,
    "mamba_num_heads": 6,
    "mamba_head_dim": 10,
    "n_groups": 3,
    "ssm_state_size": 12,
    "chunk_size": 8,
    "pad_token_id": None,
}
_GRANITE: Mapping[str, Any] = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
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
    # Layer 1 has attention, the others a state space; all have a mixture and a shared expert.
    "granitemoehybrid": Recipe(
        family="granitemoehybrid",
        config={
            **_STATE_SPACE,
            **_GRANITE,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 40,
            "shared_intermediate_size": 56,
        },
    ),
    "granitemoehybrid-dense-biased-tied-rotated-bounded": Recipe(
        family="granitemoehybrid",
        config={
            **_STATE_SPACE,
            **_GRANITE,
            "mamba_n_heads": 4,
            "mamba_n_groups": 1,
            "mamba_proj_bias": True,
            "mamba_d_conv": 3,
            "time_step_limit": (0.4, 1.5),
            "num_local_experts": 0,
            "shared_intermediate_size": 72,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "position_embedding_type": "rope",
        },
    ),
    "granitemoehybrid-unbiased-convolution": Recipe(
        family="granitemoehybrid",
        config={
            **_STATE_SPACE,
            "mamba_n_groups": 4,
            "mamba_conv_bias": False,
            "num_local_experts": 0,
            "shared_intermediate_size": 72,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        },
    ),
    # Each layer is one block: a state space, attention, a feed-forward block.
    "nemotron_h": Recipe(
        family="nemotron_h",
        config={**_NEMOTRON_H, "layers_block_type": ["linear_attention", "full_attention", "mlp"]},
    ),
    "nemotron_h-biased-bounded": Recipe(
        family="nemotron_h",
        config={
            **_NEMOTRON_H,
            "layers_block_type": ["mlp", "linear_attention", "full_attention"],
            "n_groups": 1,
            "conv_kernel": 3,
            "time_step_min": 0.4,
            "use_bias": True,
            "use_conv_bias": False,
            "mlp_bias": True,
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
