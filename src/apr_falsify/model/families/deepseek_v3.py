"""DeepSeek-V3 and R1 (DeepSeek-AI 2024): latent attention, and a sigmoid router that chooses groups first.

Kimi K2 is of this form. GLM-4.7-Flash (Z.ai 2026) has the same, with heads of other widths.
"""

from __future__ import annotations

from apr_falsify.model import gguf_settings
from apr_falsify.model.family import Family
from apr_falsify.model.names import (
    GGUF_LATENT_BIASES,
    HF_CORRECTED_MIXTURE,
    HF_LATENT_DECODER,
    LATENT_FUSED,
    gguf_names,
    without,
)
from apr_falsify.model.settings import corrected_experts, latent_attention, listed_mixtures

_NAMES = {**HF_LATENT_DECODER, **HF_CORRECTED_MIXTURE}

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    title="DeepSeek-V3",
    model_types=("deepseek_v3",),
    gguf_architectures=("deepseek2",),
    gguf_key="expert_gating_func=2",
    weights=_NAMES,
    gguf_weights=gguf_names(without(_NAMES, *GGUF_LATENT_BIASES)),
    gguf_settings=lambda gguf: {
        **gguf_settings.latent_attention(gguf),
        **gguf_settings.corrected_experts(gguf),
    },
    gguf_interleaved=True,
    published_code=("modeling_deepseek.DeepseekV3ForCausalLM",),
    settings=lambda config: {**latent_attention(config), **corrected_experts(config)},
    interleaved=True,
    split_by_rotation=True,
    fused=LATENT_FUSED,
    kept_in_f32=("router_correction",),
    config_defaults={
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-6,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
    },
)

GLM4_MOE_LITE = Family(
    name="glm4_moe_lite",
    title="GLM-4.7-Flash",
    model_types=("glm4_moe_lite",),
    weights=DEEPSEEK_V3.weights,
    settings=lambda config: {
        **latent_attention(config),
        **corrected_experts(config),
        **listed_mixtures(config),
    },
    interleaved=True,
    split_by_rotation=True,
    fused=LATENT_FUSED,
    kept_in_f32=("router_correction",),
    config_defaults={
        "q_lora_rank": 768,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "v_head_dim": 256,
        "rms_norm_eps": 1e-5,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
    },
)
