"""ERNIE 4.5 with mixtures (Baidu 2025): a softmax router that chooses, not weighs, with a correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.families.helium import ERNIE4_5
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, scored_experts
from apr_falsify.model.names import (
    HF_DECODER,
    HF_MIXTURE,
    HF_SHARED_EXPERTS,
    MLP_BIASES,
    gguf_names,
    without,
)
from apr_falsify.model.settings import Config, experts, refuse

_DENSE_BIASES = ("q_bias", "k_bias", "v_bias", "o_bias", *MLP_BIASES)


def _settings(config: Config) -> Mapping[str, Any]:
    refuse(config, "use_bias")
    first, last = config.whole("moe_layer_start_index"), config.whole("moe_layer_end_index")
    every = max(config.whole("moe_layer_interval"), 1)
    last = config.layers - 1 if last == -1 else last
    return {
        **experts(config),
        "shared_intermediate": config.whole("moe_num_shared_experts") * config.whole("moe_intermediate_size"),
        "norm_topk_prob": True,
        "router_corrected": True,
        "mixtures": tuple((n + 1) % every == 0 and first <= n <= last for n in range(config.layers)),
    }


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read what a file says; llama.cpp makes each layer from the first mixture on one, if ``every`` is 1."""
    first, every = gguf.whole("leading_dense_block_count", 0), max(gguf.whole("interleave_moe_layer_step"), 1)
    gguf.get("expert_shared_count")
    return {
        **scored_experts(gguf, "softmax"),
        "shared_intermediate": gguf.whole("expert_shared_feed_forward_length", 0),
        "norm_topk_prob": True,
        "router_corrected": True,
        "mixtures": tuple(n >= first and (n + 1) % every == 0 for n in range(gguf.layers)),
    }


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *_DENSE_BIASES),
    **HF_MIXTURE,
    **HF_SHARED_EXPERTS,
    "router_correction": "model.layers.{n}.mlp.moe_statics.e_score_correction_bias",
}

ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    title="ERNIE 4.5 MoE",
    model_types=("ernie4_5_moe",),
    gguf_architectures=("ernie4_5-moe",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_of_gguf,
    gguf_interleaved=True,
    settings=_settings,
    interleaved=True,
    kept_in_f32=("router", "router_correction"),
    role_axes={"router_correction": ("one", "experts")},
    config_keys={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    config_defaults={
        **without(ERNIE4_5.config_defaults, "head_dim"),
        "num_key_value_heads": 4,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_intermediate_size": 1536,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
)
