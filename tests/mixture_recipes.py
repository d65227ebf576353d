"""Recipes of the families whose routers have groups, sigmoids or corrections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recipe import OF_HIDDEN, YARN, Recipe

_DEEPSEEK: Mapping[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "pad_token_id": None,
}
_SOLAR = {key: value for key, value in _DEEPSEEK.items() if key != "first_k_dense_replace"}
_EXAONE: Mapping[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_group": 4,
    "topk_group": 2,
    "pad_token_id": None,
}

RECIPES: Mapping[str, Recipe] = {
    "glm4_moe": Recipe(family="glm4_moe", config={**_DEEPSEEK, "use_qk_norm": True}),
    "glm4_moe-biased-unnormed-one-group": Recipe(
        family="glm4_moe",
        config={
            **_DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "dots1": Recipe(family="dots1", config={**_DEEPSEEK, "num_key_value_heads": 4}),
    "dots1-biased-window": Recipe(
        family="dots1",
        config={
            **_DEEPSEEK,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "attention_bias": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "first_k_dense_replace": 0,
        },
    ),
    "minimax_m2": Recipe(
        family="minimax_m2",
        config={
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "minimax_m2-rotary-dim-tied": Recipe(
        family="minimax_m2",
        config={
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "pad_token_id": None,
            "rotary_dim": 12,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5_moe": Recipe(
        family="ernie4_5_moe",
        config={
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 40,
            "moe_num_shared_experts": 2,
            "pad_token_id": None,
        },
    ),
    "ernie4_5_moe-interval-unshared-untied": Recipe(
        family="ernie4_5_moe",
        config={
            **OF_HIDDEN,
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_intermediate_size": 40,
            "moe_num_shared_experts": 0,
            "moe_layer_interval": 2,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
    "gpt_oss": Recipe(
        family="gpt_oss",
        config={
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "swiglu_limit": 0.7,
            "sliding_window": 5,
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 6.0, "beta_slow": 2.0},
        },
    ),
    "gpt_oss-unbiased-tied-plain-rope-all-windowed": Recipe(
        family="gpt_oss",
        config={
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "swiglu_limit": 1.5,
            "swiglu_alpha": 1.2,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention"] * 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "solar_open": Recipe(family="solar_open", config=_SOLAR),
    "solar_open-biased-tied": Recipe(
        family="solar_open",
        config={
            **_SOLAR,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "exaone_moe": Recipe(
        family="exaone_moe",
        config={
            **_EXAONE,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "exaone_moe-listed-one-group-tied": Recipe(
        family="exaone_moe",
        config={
            **_EXAONE,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "n_group": 1,
            "topk_group": 1,
            "num_shared_experts": 2,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoeshared": Recipe(
        family="granitemoeshared",
        config={
            **OF_HIDDEN,
            "num_local_experts": 6,
            "shared_intermediate_size": 56,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
        },
    ),
    "granitemoeshared-unshared-tied": Recipe(
        family="granitemoeshared",
        config={
            **OF_HIDDEN,
            "num_local_experts": 5,
            "attention_multiplier": 0.0625,
            "shared_intermediate_size": 0,
            "tie_word_embeddings": True,
        },
    ),
}
