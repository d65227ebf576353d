"""Recipes of the families with latent attention: with and without a latent for q, YaRN, groups, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recipe import YARN, Recipe

LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": 44,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 12,
    "v_head_dim": 20,
    "pad_token_id": None,
}
"""Four sizes that are all different, of which none divides another but by chance."""
_EXPERTS: Mapping[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
_GROUPS = {"n_group": 4, "topk_group": 2}
_YARN_IN_SCALE = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}

RECIPES: Mapping[str, Recipe] = {
    "deepseek_v2": Recipe(
        family="deepseek_v2",
        config={
            **LATENT,
            **_EXPERTS,
            **_GROUPS,
            "topk_method": "group_limited_greedy",
            "rope_parameters": _YARN_IN_SCALE,
        },
    ),
    "deepseek_v2-direct-greedy-biased": Recipe(
        family="deepseek_v2",
        config={
            **LATENT,
            **_EXPERTS,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.0,
            "attention_bias": True,
        },
    ),
    "deepseek_v3": Recipe(
        family="deepseek_v3",
        config={
            **LATENT,
            **_EXPERTS,
            **_GROUPS,
            "norm_topk_prob": True,
            "rope_parameters": {**_YARN_IN_SCALE, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3-direct-unnormed-one-group-tied": Recipe(
        family="deepseek_v3",
        config={
            **LATENT,
            **_EXPERTS,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "norm_topk_prob": False,
            "first_k_dense_replace": 0,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        },
    ),
    "glm4_moe_lite": Recipe(
        family="glm4_moe_lite",
        config={
            **{key: value for key, value in _EXPERTS.items() if key != "first_k_dense_replace"},
            **LATENT,
            "v_head_dim": 32,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "youtu": Recipe(family="youtu", config=LATENT),
    "youtu-direct-untied-one-width": Recipe(
        family="youtu",
        config={
            **LATENT,
            "q_lora_rank": None,
            "v_head_dim": 28,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
}
