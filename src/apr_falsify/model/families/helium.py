"""Helium (Kyutai 2025) and ERNIE 4.5 (Baidu 2025): a Llama each, with neighbouring rotary pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, gguf_names, without
from apr_falsify.model.settings import Config


def _biased(config: Config) -> Mapping[str, bool]:
    """Read ``use_bias``: of every projection."""
    return dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), config.flag("use_bias"))


def _of_helium(config: Config) -> Mapping[str, Any]:
    return {"qkv_bias": config.flag("attention_bias"), "mlp_bias": config.flag("mlp_bias")}


HELIUM = Family(
    name="helium",
    title="Helium",
    model_types=("helium",),
    weights=without(HF_DECODER, "o_bias"),
    settings=_of_helium,
    interleaved=True,
    config_defaults={
        "num_key_value_heads": 20,
        "head_dim": 128,
        "rms_norm_eps": 1e-8,
        "rope_theta": 1e5,
    },
)

ERNIE4_5 = Family(
    name="ernie4_5",
    title="ERNIE 4.5",
    model_types=("ernie4_5",),
    gguf_architectures=("ernie4_5",),
    weights=HF_DECODER,
    gguf_weights=gguf_names(HF_DECODER),
    gguf_interleaved=True,
    settings=_biased,
    interleaved=True,
    config_defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
)
