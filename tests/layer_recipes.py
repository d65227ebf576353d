"""Recipes of the families whose layers differ in kind: chunks, recurrent layers, convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recipe import Recipe

_LLAMA4: Mapping[str, Any] = {
    "intermediate_size": 40,
    "intermediate_size_mlp": 80,
    "num_local_experts": 6,
    "attention_chunk_size": 5,
    "floor_scale": 4,
    "attn_scale": 0.3,
    "pad_token_id": None,
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
    # As the models of 128 experts: no norm of q and k. Layer 1 has no RoPE.
    "llama4_text-unnormed-biased-tied": Recipe(
        family="llama4_text",
        config={
            **_LLAMA4,
            "num_experts_per_tok": 1,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 6,
            "use_qk_norm": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
