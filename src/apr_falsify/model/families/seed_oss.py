"""Seed-OSS (ByteDance Seed 2025): a Llama with biases on q, k and v, and a switch apart for the output's."""

from __future__ import annotations

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, gguf_names

SEED_OSS = Family(
    name="seed_oss",
    title="Seed-OSS",
    model_types=("seed_oss",),
    gguf_architectures=("seed_oss",),
    weights=HF_DECODER,
    gguf_weights=gguf_names(HF_DECODER, {"ffn_norm": "post_attention_norm"}),
    settings=lambda config: {
        "qkv_bias": config.flag("attention_bias"),
        "output_bias": config.flag("attention_out_bias"),
        "mlp_bias": config.flag("mlp_bias"),
    },
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "attention_bias": True,
    },
)
