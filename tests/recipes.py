"""Recipes of the first families: every knob of their configs that changes a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recipe import GEMMA, MOE, YARN, Recipe

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}


_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 9.0],
}
_PHI3_TOKENS = {"pad_token_id": None}
_GPT2: Mapping[str, Any] = {
    "hidden_size": 96,
    "head_dim": None,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "rms_norm_eps": None,
    "max_position_embeddings": 256,
    "layer_norm_epsilon": 1e-5,
}

RECIPES: Mapping[str, Recipe] = {
    # Qwen2's own config knows no head_dim; 96 / 4 = 24
    "qwen2": Recipe(family="qwen2", config={"hidden_size": 96, "head_dim": None}, large_biases=True),
    "qwen2-tied-yarn-window": Recipe(
        family="qwen2",
        config={
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "llama": Recipe(family="llama"),
    "llama-biased-tied-llama3": Recipe(
        family="llama",
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA3,
        },
    ),
    "llama-linear-mha": Recipe(
        family="llama", config={"rope_parameters": _LINEAR, "num_key_value_heads": 4, "head_dim": None}
    ),
    "llama-yarn-mscale": Recipe(
        family="llama",
        config={
            "rope_parameters": {
                **YARN,
                "truncate": False,
                "beta_fast": 6.0,
                "beta_slow": 2.0,
                "mscale": 0.8,
                "mscale_all_dim": 0.5,
            }
        },
    ),
    "qwen3": Recipe(family="qwen3", config={"tie_word_embeddings": True}),
    "qwen3-biased-yarn-window": Recipe(
        family="qwen3",
        config={
            "attention_bias": True,
            "rope_parameters": YARN,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral": Recipe(family="mistral", config={"sliding_window": 5, "num_key_value_heads": 1}),
    "mistral-yarn-factor": Recipe(
        family="mistral", config={"rope_parameters": {**YARN, "attention_factor": 1.3}}
    ),
    # Phi-3 checks longrope's divisors against hidden / heads: 96 / 4 = 24, of which 12 channels are rotated
    "phi3": Recipe(family="phi3", config={"hidden_size": 96, "head_dim": None, **_PHI3_TOKENS}),
    "phi3-longrope-partial-window": Recipe(
        family="phi3",
        config={
            "hidden_size": 96,
            "head_dim": None,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "sliding_window": 9,
            "original_max_position_embeddings": 16,
            "rope_parameters": _LONGROPE,
            **_PHI3_TOKENS,
        },
    ),
    "gpt2": Recipe(family="gpt2", config=_GPT2, large_biases=True),
    "gpt2-by-layer-upcast": Recipe(
        family="gpt2",
        config={
            **_GPT2,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "n_inner": 80,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2": Recipe(family="gemma2", config={**GEMMA, "attn_logit_softcapping": 3.0, "sliding_window": 5}),
    "gemma2-biased-uncapped": Recipe(
        family="gemma2",
        config={
            **GEMMA,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 4,
        },
    ),
    "gemma3": Recipe(
        family="gemma3_text",
        config={
            **GEMMA,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "gemma3-capped-pattern": Recipe(
        family="gemma3_text",
        config={**GEMMA, "sliding_window": 4, "sliding_window_pattern": 2, "final_logit_softcapping": 2.0},
    ),
    "qwen3_moe": Recipe(family="qwen3_moe", config={**MOE, "norm_topk_prob": True}),
    "qwen3_moe-dense-layer-window": Recipe(
        family="qwen3_moe",
        config={
            **MOE,
            "mlp_only_layers": [1],
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "olmo2": Recipe(family="olmo2"),
    "olmo2-biased-tied-yarn": Recipe(
        family="olmo2",
        config={"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "granite": Recipe(
        family="granite",
        config={
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "granite-biased-tied-llama3": Recipe(
        family="granite",
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA3,
            "residual_multiplier": 1.5,
            "head_dim": None,
        },
    ),
    "mistral-linear": Recipe(family="mistral", config={"sliding_window": None, "rope_parameters": _LINEAR}),
}
