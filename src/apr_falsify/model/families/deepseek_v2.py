"""DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024): latent attention, and a softmax router that may have groups.

transformers passes over ``norm_topk_prob``, which is false in every published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model import gguf_settings
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import SOFTMAX, Gguf
from apr_falsify.model.names import (
    GGUF_LATENT_BIASES,
    HF_LATENT_DECODER,
    HF_MIXTURE,
    HF_SHARED_EXPERTS,
    LATENT_FUSED,
    gguf_names,
    without,
)
from apr_falsify.model.settings import Config, latent_attention, refuse_others, routed_and_shared


def _settings(config: Config) -> Mapping[str, Any]:
    refuse_others(config, "topk_method", "greedy", "group_limited_greedy")
    refuse_others(config, "scoring_func", "softmax")
    refuse_others(config, "norm_topk_prob", False)
    refuse_others(config, "mlp_bias", False)
    limited = config.get("topk_method") == "group_limited_greedy"
    return {
        **latent_attention(config),
        **routed_and_shared(config),
        "expert_groups": config["n_group"] if limited else 1,
        "expert_groups_chosen": config["topk_group"] if limited else 1,
    }


_NAMES: Mapping[str, str] = {**HF_LATENT_DECODER, **HF_MIXTURE, **HF_SHARED_EXPERTS}


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    if gguf.flag("expert_weights_norm"):
        raise GeometryError("expert_weights_norm is true, which has no formula here", expected="false")
    if (function := gguf.whole("expert_gating_func", SOFTMAX)) != SOFTMAX:
        raise GeometryError(f"expert_gating_func is {function}", expected=f"{SOFTMAX}, a softmax")
    return {
        **gguf_settings.latent_attention(gguf),
        **gguf_settings.routed_and_shared(gguf),
        "norm_topk_prob": False,
        "expert_groups": gguf.whole("expert_group_count", 1) or 1,
        "expert_groups_chosen": gguf.whole("expert_group_used_count", 1) or 1,
    }


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    title="DeepSeek-V2",
    model_types=("deepseek_v2",),
    gguf_architectures=("deepseek2",),
    gguf_key="expert_count",
    weights=_NAMES,
    gguf_weights=gguf_names(without(_NAMES, *GGUF_LATENT_BIASES)),
    gguf_settings=_of_gguf,
    gguf_interleaved=True,
    settings=_settings,
    published_code=("modeling_deepseek.DeepseekV2ForCausalLM",),
    interleaved=True,
    fused=LATENT_FUSED,
    config_defaults={
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-6,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
    },
)
