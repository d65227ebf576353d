"""Youtu-LLM (Tencent 2025): the latent attention of DeepSeek-V3 in a dense decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf
from apr_falsify.model.names import (
    GGUF_LATENT_BIASES,
    HF_LATENT_DECODER,
    LATENT_FUSED,
    gguf_names,
    without,
)
from apr_falsify.model.settings import latent_attention


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read what a file says; keys of experts that llama.cpp asks of every file are passed over."""
    for key in ("expert_feed_forward_length", "expert_shared_count", "leading_dense_block_count"):
        gguf.get(key)
    return gguf_settings.latent_attention(gguf)


YOUTU = Family(
    name="youtu",
    title="Youtu-LLM",
    model_types=("youtu",),
    gguf_architectures=("deepseek2",),
    weights=HF_LATENT_DECODER,
    gguf_weights=gguf_names(without(HF_LATENT_DECODER, *GGUF_LATENT_BIASES)),
    gguf_settings=_of_gguf,
    gguf_interleaved=True,
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
