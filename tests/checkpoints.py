"""Small random HuggingFace checkpoints of every family, made by transformers itself."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

_SIZES: Mapping[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,  # not hidden / heads, and 1/sqrt(24) is no power of two
    "intermediate_size": 80,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


_LAYER_NORM: Mapping[str, Any] = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "pad_token_id": None}
_OF_HIDDEN: Mapping[str, Any] = {"hidden_size": 96, "head_dim": None}
"""For configs that know no head_dim: 96 / 4 = 24."""


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
_GEMMA: Mapping[str, Any] = {"query_pre_attn_scalar": 20, "pad_token_id": None}
_MOE: Mapping[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What makes one checkpoint.

    Attributes:
        family: its ``model_type``.
        config: what differs from the common sizes.
        large_biases: whether k and v biases reach hundreds, as Qwen2.5's do.

    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    large_biases: bool = False


RECIPES: Mapping[str, Recipe] = {
    # Qwen2's own config knows no head_dim; 96 / 4 = 24
    "qwen2": Recipe(family="qwen2", config={"hidden_size": 96, "head_dim": None}, large_biases=True),
    "qwen2-tied-yarn-window": Recipe(
        family="qwen2",
        config={
            "tie_word_embeddings": True,
            "rope_parameters": _YARN,
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
                **_YARN,
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
            "rope_parameters": _YARN,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral": Recipe(family="mistral", config={"sliding_window": 5, "num_key_value_heads": 1}),
    "mistral-yarn-factor": Recipe(
        family="mistral", config={"rope_parameters": {**_YARN, "attention_factor": 1.3}}
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
    "gemma2": Recipe(family="gemma2", config={**_GEMMA, "attn_logit_softcapping": 3.0, "sliding_window": 5}),
    "gemma2-biased-uncapped": Recipe(
        family="gemma2",
        config={
            **_GEMMA,
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
            **_GEMMA,
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
        config={**_GEMMA, "sliding_window": 4, "sliding_window_pattern": 2, "final_logit_softcapping": 2.0},
    ),
    "qwen3_moe": Recipe(family="qwen3_moe", config={**_MOE, "norm_topk_prob": True}),
    "qwen3_moe-dense-layer-window": Recipe(
        family="qwen3_moe",
        config={
            **_MOE,
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
        config={"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": _YARN},
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
            "rope_parameters": _YARN,
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
        config={"sliding_window": 4, "tie_word_embeddings": True, "rope_parameters": _YARN},
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
                "full_attention": _YARN,
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
        config={**_OF_HIDDEN, "rms_norm_eps": None, "norm_epsilon": 1e-5},
    ),
    "starcoder2-untied-unbiased-window": Recipe(
        family="starcoder2",
        config={
            **_OF_HIDDEN,
            "rms_norm_eps": None,
            "norm_epsilon": 1e-6,
            "use_bias": False,
            "tie_word_embeddings": False,
            "sliding_window": 5,
            "hidden_act": "gelu",
        },
    ),
    "phi": Recipe(family="phi", config={**_LAYER_NORM, **_OF_HIDDEN, "num_key_value_heads": 4}),
    "phi-tied-grouped-quarter": Recipe(
        family="phi",
        config={
            **_LAYER_NORM,
            **_OF_HIDDEN,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    "stablelm": Recipe(family="stablelm", config={**_LAYER_NORM, **_OF_HIDDEN}),
    "stablelm-parallel-biased-tied": Recipe(
        family="stablelm",
        config={
            **_LAYER_NORM,
            **_OF_HIDDEN,
            "use_parallel_residual": True,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox": Recipe(
        family="gpt_neox",
        config={**_LAYER_NORM, **_OF_HIDDEN, "num_key_value_heads": None},
    ),
    "gpt_neox-serial-unbiased-tied-half": Recipe(
        family="gpt_neox",
        config={
            **_LAYER_NORM,
            **_OF_HIDDEN,
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
            "rotary_pct": 0.5,
        },
    ),
    "cohere": Recipe(family="cohere", config={**_LAYER_NORM, **_OF_HIDDEN}),
    "cohere-biased-untied": Recipe(
        family="cohere",
        config={
            **_LAYER_NORM,
            **_OF_HIDDEN,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "logit_scale": 2.0,
        },
    ),
    "cohere2": Recipe(
        family="cohere2",
        config={**_LAYER_NORM, **_OF_HIDDEN, "sliding_window": 5, "sliding_window_pattern": 2},
    ),
    "cohere2-biased-untied": Recipe(
        family="cohere2",
        config={
            **_LAYER_NORM,
            **_OF_HIDDEN,
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
            "rope_parameters": _YARN,
        },
    ),
    "arcee": Recipe(family="arcee"),
    "arcee-biased-tied-yarn": Recipe(
        family="arcee",
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _YARN,
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
    "jais2": Recipe(family="jais2", config=_LAYER_NORM),
    "jais2-unbiased-tied": Recipe(
        family="jais2",
        config={
            **_LAYER_NORM,
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
    "hyperclovax": Recipe(
        family="hyperclovax",
        config={
            **_OF_HIDDEN,
            "embedding_multiplier": 10.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.5,
            "logits_scaling": 0.125,
        },
    ),
    "hyperclovax-biased-tied": Recipe(
        family="hyperclovax",
        config={
            **_OF_HIDDEN,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "vaultgemma": Recipe(
        family="vaultgemma",
        config={**_GEMMA, "attn_logit_softcapping": 3.0, "sliding_window": 5},
    ),
    "vaultgemma-biased-untied-uncapped": Recipe(
        family="vaultgemma",
        config={
            **_GEMMA,
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
            **_OF_HIDDEN,
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
            **_OF_HIDDEN,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_moe": Recipe(
        family="qwen2_moe", config={**_MOE, **_OF_HIDDEN, "shared_expert_intermediate_size": 56}
    ),
    "qwen2_moe-normed-unbiased-dense-layer-window": Recipe(
        family="qwen2_moe",
        config={
            **_MOE,
            **_OF_HIDDEN,
            "shared_expert_intermediate_size": 56,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
}
"""Every family, and every knob of its config that changes a formula."""

FAMILIES = (
    "qwen2",
    "llama",
    "qwen3",
    "mistral",
    "phi3",
    "gpt2",
    "gemma2",
    "gemma3",
    "qwen3_moe",
    "olmo2",
    "granite",
    "gemma",
    "mixtral",
    "olmoe",
    "smollm3",
    "ministral",
    "seed_oss",
    "olmo3",
    "cwm",
    "exaone4",
    "starcoder2",
    "phi",
    "stablelm",
    "gpt_neox",
    "cohere",
    "cohere2",
    "glm",
    "glm4",
    "helium",
    "ernie4_5",
    "arcee",
    "nemotron",
    "jais2",
    "internlm3",
    "iquestcoder",
    "hyperclovax",
    "vaultgemma",
    "granitemoe",
    "qwen2_moe",
)
"""One plain recipe of each family."""


def make_checkpoint(
    directory: Path, name: str, dtype: torch.dtype = torch.float32, *, layers: int = 3
) -> Path:
    """Write the checkpoint of recipe ``name`` into ``directory``: config.json and safetensors."""
    recipe = RECIPES[name]
    sizes = {**_SIZES, **recipe.config, "num_hidden_layers": layers}
    values = {key: value for key, value in sizes.items() if value is not None}
    config = transformers.CONFIG_MAPPING[recipe.family](**{**values, **_explicit_none(recipe)})
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(_random(key, weight.shape, generator, recipe.large_biases))
    model.to(dtype).save_pretrained(directory)
    return directory


def _explicit_none(recipe: Recipe) -> dict[str, None]:
    """Return the keys that a recipe sets to nothing, but for those that its family's config does not know."""
    unknown = {"head_dim", "num_key_value_heads", "intermediate_size", "rms_norm_eps"}
    return {key: None for key, value in recipe.config.items() if value is None and key not in unknown}


def _random(key: str, shape: torch.Size, generator: torch.Generator, large_biases: bool) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if ("norm" in key or ".ln_" in key) and not key.endswith("bias"):
        return 1 + 0.3 * values
    scale = 0.5 if key.endswith("bias") or "embed" in key or ".wte" in key else shape[-1] ** -0.5
    if large_biases and "_proj.bias" in key and "model." in key:
        # A large k times a large q would leave nothing of the softmax but its maximum.
        scale = {"q_proj": 0.02, "k_proj": 250.0, "v_proj": 250.0}[key.split(".")[-2]]
    if large_biases and "c_attn.bias" in key:  # q, k and v in one
        return torch.cat([part * by for part, by in zip(values.chunk(3), (0.02, 250.0, 250.0), strict=True)])
    if large_biases and "q_proj.weight" in key:
        scale *= 0.02
    return scale * values
