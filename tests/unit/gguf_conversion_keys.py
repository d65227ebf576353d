"""What llama.cpp's conversion says of a model beside the usual sizes, architecture by architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tests.unit.gguf_conversion_parts import Config

GRANITE: Mapping[str, str] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def rope_of(config: Config) -> Config:
    """Return the rotary parameters, those of full attention where kinds of layers differ."""
    rope = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def slides(config: Config) -> list[bool]:
    """Return which layers have the window."""
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def share(config: Config) -> Mapping[str, Any]:
    """Return how many channels of a head are rotated."""
    share = rope_of(config).get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"rope.dimension_count": int(share * width)}


def parallel(config: Config) -> Mapping[str, Any]:
    """Return GPT-NeoX's and StableLM's switch, and the rotated channels."""
    return {**share(config), "use_parallel_residual": config["use_parallel_residual"]}


def longrope(config: Config) -> Mapping[str, Any]:
    """Return Phi-3's original context and factor."""
    rope, found = (
        rope_of(config),
        {**share(config), "attention.sliding_window": config["sliding_window"] or 0},
    )
    original = config["original_max_position_embeddings"]
    found["rope.scaling.original_context_length"] = original
    if rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    return found


DEEPSEEK: Mapping[str, str] = {
    "expert_count": "n_routed_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "leading_dense_block_count": "first_k_dense_replace",
}
WINDOW = {"attention.sliding_window": "sliding_window"}


def latent(config: Config) -> Mapping[str, Any]:
    """As what is cached: one head of k, as wide as the latent and the rotated part, and one of v."""
    rotary, latent, rope = config["qk_rope_head_dim"], config["kv_lora_rank"], rope_of(config)
    mixed = config.get("n_routed_experts") is not None
    found = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rotary,
        "attention.value_length": latent,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotary,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rotary,
        "leading_dense_block_count": dense_first(config),
        "expert_shared_count": config.get("n_shared_experts") or 0,
        "expert_feed_forward_length": config["moe_intermediate_size" if mixed else "intermediate_size"],
    }
    if config.get("q_lora_rank") is not None:
        found["attention.q_lora_rank"] = config["q_lora_rank"]
    if "mscale_all_dim" in rope:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return found


def dense_first(config: Config) -> int:
    if (kinds := config.get("mlp_layer_types")) is not None:
        return int(kinds.index("sparse"))
    if config.get("n_routed_experts") is None:
        return int(config["num_hidden_layers"])
    return int(config["first_k_dense_replace"])


def sigmoid(config: Config) -> Mapping[str, Any]:
    """Return the keys of latent attention, with a sigmoid router."""
    return {**latent(config), "expert_gating_func": 2}


def short_convolution(config: Config) -> Mapping[str, Any]:
    """Return LFM2's heads layer by layer, and the width of its feed-forward block."""
    width = config["intermediate_size"]
    if config.get("block_auto_adjust_ff_dim"):
        multiple = config["block_multiple_of"]
        width = -(-int(config["block_ffn_dim_multiplier"] * int(2 * width / 3)) // multiple) * multiple
    heads = [config["num_key_value_heads"] * (kind != "conv") for kind in config["layer_types"]]
    return {"attention.head_count_kv": heads, "feed_forward_length": width}


def mixed_convolution(config: Config) -> Mapping[str, Any]:
    """Return the keys of its mixture too."""
    found = {"expert_gating_func": 2, "leading_dense_block_count": config["num_dense_layers"]}
    return {**short_convolution(config), **found}


def ernie(config: Config) -> Mapping[str, Any]:
    """Return the width of the shared expert."""
    shared = config["moe_num_shared_experts"]
    own = shared * config["moe_intermediate_size"]  # there intermediate_size // kv heads, in them the same
    return {"expert_shared_feed_forward_length": own} if shared else {}


def delta(config: Config) -> Mapping[str, Any]:
    """Return the sizes of a gated delta rule, and which layers have it."""
    heads, width = config["linear_num_value_heads"], config["linear_value_head_dim"]
    return {
        **share(config),
        "ssm.inner_size": heads * width,
        "attention.recurrent_layers": [kind == "linear_attention" for kind in config["layer_types"]],
        "full_attention_interval": config.get("full_attention_interval", 4),
    }


DELTA: Mapping[str, str] = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}


def sections(config: Config) -> Mapping[str, Any]:
    """Return the sections of M-RoPE."""
    return {"rope.dimension_sections": [*rope_of(config)["mrope_section"], 0][:4]}


def of_images(config: Config) -> Mapping[str, Any]:
    """Return them, and how many layers images enter."""
    return {**sections(config), "n_deepstack_layers": 1}


def exaone(config: Config) -> Mapping[str, Any]:
    """Return K-EXAONE's windows and its mixture."""
    shared = config["moe_intermediate_size"] * config["num_shared_experts"]
    return {
        "attention.sliding_window_pattern": slides(config),
        "expert_shared_feed_forward_length": shared,
        "expert_gating_func": 2,
        "rope.scaling.type": "none",
        "nextn_predict_layers": 0,
    }
