"""Recipes of further families: every knob of their configs that changes a formula."""

from __future__ import annotations

from collections.abc import Mapping

from tests.recipe import GEMMA, LAYER_NORM, MOE, OF_HIDDEN, YARN, Recipe

RECIPES: Mapping[str, Recipe] = {
    "gemma": Recipe(family="gemma", config={"pad_token_id": None}),
    "gemma-legacy-act-untied-biased": Recipe(
        family="gemma",
        config={
            "pad_token_id": None,
            "hidden_act": "gelu",
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "mixtral": Recipe(family="mixtral", config={"num_local_experts": 6}),
    "mixtral-tied-window": Recipe(
        family="mixtral",
        config={
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "tie_word_embeddings": True,
        },
    ),
    # OLMoE's norms of q and k are as wide as hidden / heads makes them
    "olmoe": Recipe(
        family="olmoe",
        config={
            "hidden_size": 96,
            "head_dim": None,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "pad_token_id": None,
        },
    ),
    "olmoe-normed-biased": Recipe(
        family="olmoe",
        config={
            "hidden_size": 96,
            "head_dim": None,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
            "pad_token_id": None,
        },
    ),
    "smollm3": Recipe(family="smollm3", config={"pad_token_id": None, "no_rope_layer_interval": 2}),
    "smollm3-listed-biased-untied-window": Recipe(
        family="smollm3",
        config={
            "pad_token_id": None,
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
    "ministral": Recipe(
        family="ministral",
        config={
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "ministral-tied-all-windowed": Recipe(
        family="ministral",
        config={"sliding_window": 4, "tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "seed_oss": Recipe(family="seed_oss", config={"pad_token_id": None}),
    "seed_oss-output-biased-tied": Recipe(
        family="seed_oss",
        config={
            "pad_token_id": None,
            "attention_bias": False,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "olmo3": Recipe(family="olmo3", config={"pad_token_id": None, "sliding_window": 5}),
    "olmo3-biased-tied-yarn": Recipe(
        family="olmo3",
        config={
            "pad_token_id": None,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "cwm": Recipe(family="cwm", config={"sliding_window": 5}),
    "cwm-tied-biased-plain-rope": Recipe(
        family="cwm",
        config={
            "sliding_window": 4,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "exaone4": Recipe(
        family="exaone4", config={"pad_token_id": None, "sliding_window": 5, "sliding_window_pattern": 2}
    ),
    "exaone4-tied-unwindowed": Recipe(
        family="exaone4",
        config={
            "pad_token_id": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention"] * 3,
        },
    ),
    "starcoder2": Recipe(
        family="starcoder2",
        config={**OF_HIDDEN, "rms_norm_eps": None, "norm_epsilon": 1e-5},
    ),
    "starcoder2-untied-unbiased-window": Recipe(
        family="starcoder2",
        config={
            **OF_HIDDEN,
            "rms_norm_eps": None,
            "norm_epsilon": 1e-6,
            "use_bias": False,
            "tie_word_embeddings": False,
            "sliding_window": 5,
            "hidden_act": "gelu",
        },
    ),
    "phi": Recipe(family="phi", config={**LAYER_NORM, **OF_HIDDEN, "num_key_value_heads": 4}),
    "phi-tied-grouped-quarter": Recipe(
        family="phi",
        config={
            **LAYER_NORM,
            **OF_HIDDEN,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    "stablelm": Recipe(family="stablelm", config={**LAYER_NORM, **OF_HIDDEN}),
    "stablelm-parallel-biased-tied": Recipe(
        family="stablelm",
        config={
            **LAYER_NORM,
            **OF_HIDDEN,
            "use_parallel_residual": True,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox": Recipe(
        family="gpt_neox",
        config={**LAYER_NORM, **OF_HIDDEN, "num_key_value_heads": None},
    ),
    "gpt_neox-serial-unbiased-tied-half": Recipe(
        family="gpt_neox",
        config={
            **LAYER_NORM,
            **OF_HIDDEN,
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
            "rotary_pct": 0.5,
        },
    ),
    "cohere": Recipe(family="cohere", config={**LAYER_NORM, **OF_HIDDEN}),
    "cohere-biased-untied": Recipe(
        family="cohere",
        config={
            **LAYER_NORM,
            **OF_HIDDEN,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "logit_scale": 2.0,
        },
    ),
    "cohere2": Recipe(
        family="cohere2",
        config={**LAYER_NORM, **OF_HIDDEN, "sliding_window": 5, "sliding_window_pattern": 2},
    ),
    "cohere2-biased-untied": Recipe(
        family="cohere2",
        config={
            **LAYER_NORM,
            **OF_HIDDEN,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "glm": Recipe(family="glm", config={"pad_token_id": None}),
    "glm-unbiased-tied-whole": Recipe(
        family="glm",
        config={
            "pad_token_id": None,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "glm4": Recipe(family="glm4", config={"pad_token_id": None}),
    "glm4-unbiased-tied": Recipe(
        family="glm4",
        config={"pad_token_id": None, "attention_bias": False, "tie_word_embeddings": True},
    ),
    # Helium's output projection is square: hidden = heads * head_dim
    "helium": Recipe(family="helium", config={"hidden_size": 96, "pad_token_id": None}),
    "helium-biased-tied": Recipe(
        family="helium",
        config={
            "hidden_size": 96,
            "pad_token_id": None,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": Recipe(family="ernie4_5", config={"pad_token_id": None}),
    "ernie4_5-biased-untied-yarn": Recipe(
        family="ernie4_5",
        config={
            "pad_token_id": None,
            "use_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
    "arcee": Recipe(family="arcee"),
    "arcee-biased-tied-yarn": Recipe(
        family="arcee",
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
    "nemotron": Recipe(family="nemotron", config={"rms_norm_eps": None, "norm_eps": 1e-5}),
    "nemotron-biased-tied": Recipe(
        family="nemotron",
        config={
            "rms_norm_eps": None,
            "norm_eps": 1e-6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "jais2": Recipe(family="jais2", config=LAYER_NORM),
    "jais2-unbiased-tied": Recipe(
        family="jais2",
        config={
            **LAYER_NORM,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "relu",
        },
    ),
    "internlm3": Recipe(family="internlm3", config={"pad_token_id": None}),
    "internlm3-biased-tied": Recipe(
        family="internlm3",
        config={
            "pad_token_id": None,
            "qkv_bias": True,
            "bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "iquestcoder": Recipe(family="iquestcoder"),
    "vaultgemma": Recipe(
        family="vaultgemma",
        config={**GEMMA, "attn_logit_softcapping": 3.0, "sliding_window": 5},
    ),
    "vaultgemma-biased-untied-uncapped": Recipe(
        family="vaultgemma",
        config={
            **GEMMA,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "sliding_window": 4,
        },
    ),
    "granitemoe": Recipe(
        family="granitemoe",
        config={
            **OF_HIDDEN,
            "num_local_experts": 6,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
        },
    ),
    "granitemoe-biased-tied": Recipe(
        family="granitemoe",
        config={
            **OF_HIDDEN,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_moe": Recipe(
        family="qwen2_moe", config={**MOE, **OF_HIDDEN, "shared_expert_intermediate_size": 56}
    ),
    "qwen2_moe-normed-unbiased-dense-layer-window": Recipe(
        family="qwen2_moe",
        config={
            **MOE,
            **OF_HIDDEN,
            "shared_expert_intermediate_size": 56,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
}
