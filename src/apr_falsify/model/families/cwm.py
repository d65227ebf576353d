"""Code World Model (Meta 2025): a Llama with a window on three layers of four, in the llama3 rotation."""

from __future__ import annotations

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, without
from apr_falsify.model.settings import window_where

_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}

CWM = Family(
    name="cwm",
    title="CWM",
    model_types=("cwm",),
    weights=without(HF_DECODER, "q_bias", "k_bias", "v_bias", "o_bias"),
    settings=lambda config: {
        "mlp_bias": config.flag("mlp_bias"),
        "windows": window_where(config, lambda layer: layer % 4 != 0),
    },
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8192,
        "rope_theta": 1e6,
        "rope_parameters": _ROPE,
    },
)
