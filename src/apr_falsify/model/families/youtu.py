"""Youtu-LLM (Tencent 2025): the latent attention of DeepSeek-V3 in a dense decoder."""

from __future__ import annotations

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_LATENT_DECODER, LATENT_FUSED
from apr_falsify.model.settings import latent_attention

YOUTU = Family(
    name="youtu",
    title="Youtu-LLM",
    model_types=("youtu",),
    weights=HF_LATENT_DECODER,
    settings=latent_attention,
    interleaved=True,
    split_by_rotation=True,
    fused=LATENT_FUSED,
    config_defaults={
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
)
