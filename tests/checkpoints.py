"""Small random HuggingFace checkpoints of every family, made by transformers itself."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import further_recipes, latent_recipes, layer_recipes, mixture_recipes, recipes
from tests.recipe import Recipe

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

RECIPES: Mapping[str, Recipe] = {
    **recipes.RECIPES,
    **further_recipes.RECIPES,
    **mixture_recipes.RECIPES,
    **latent_recipes.RECIPES,
    **layer_recipes.RECIPES,
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
    "vaultgemma",
    "granitemoe",
    "qwen2_moe",
    "glm4_moe",
    "dots1",
    "minimax_m2",
    "ernie4_5_moe",
    "gpt_oss",
    "solar_open",
    "exaone_moe",
    "granitemoeshared",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "youtu",
    "llama4_text",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "lfm2",
    "lfm2_moe",
    "granitemoehybrid",
    "nemotron_h",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
)
"""One plain recipe of each family."""


_BY_LAYER = ("layer_types", "layers_block_type")


def make_checkpoint(
    directory: Path, name: str, dtype: torch.dtype = torch.float32, *, layers: int = 3
) -> Path:
    """Write the checkpoint of recipe ``name`` into ``directory``: config.json and safetensors."""
    recipe = RECIPES[name]
    sizes = {**_SIZES, **recipe.config, "num_hidden_layers": layers}
    values = {key: value for key, value in sizes.items() if value is not None}
    values |= {key: values[key][:layers] for key in _BY_LAYER if key in values}
    config = transformers.CONFIG_MAPPING[recipe.family](**{**values, **_explicit_none(recipe)})
    model = (
        _whole(recipe.within, config)
        if recipe.within
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    )
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(_random(key, weight.shape, generator, recipe.large_biases))
        for key, buffer in model.named_buffers():
            if key.endswith(("e_score_correction_bias", "feed_forward.expert_bias")):
                buffer.copy_(_random(key, buffer.shape, generator, recipe.large_biases))
    model.to(dtype).save_pretrained(directory)
    return directory


_VISION: Mapping[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
}


def _whole(model_type: str, text: Any) -> Any:
    """Return a model that sees, of the smallest eyes, around the text model of config ``text``."""
    vision = {**_VISION, "out_hidden_size": text.hidden_size}
    config = transformers.CONFIG_MAPPING[model_type](
        text_config=text.to_dict(),
        vision_config=vision,
        tie_word_embeddings=getattr(text, "tie_word_embeddings", False),
    )
    return transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)


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
