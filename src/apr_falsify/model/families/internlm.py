"""InternLM3 (2025) and IQuest-Coder (2026): a Llama each, which transformers runs as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER
from apr_falsify.model.settings import Config, attention_bias, refuse


def _settings(config: Config) -> Mapping[str, Any]:
    refuse(config, "clip_qkv", "use_sliding_window")
    return {**attention_bias(config), "mlp_bias": config.flag("mlp_bias")}


INTERNLM3 = Family(
    name="internlm3",
    title="InternLM3",
    model_types=("internlm3",),
    weights=HF_DECODER,
    settings=_settings,
    config_keys={"attention_bias": "qkv_bias", "mlp_bias": "bias"},
    config_defaults={"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5},
)

IQUESTCODER = Family(
    name="iquestcoder",
    title="IQuest-Coder",
    model_types=("iquestcoder",),
    weights=HF_DECODER,
    settings=_settings,
    config_defaults={"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
)
