"""EXAONE 4 and K-EXAONE (LG AI Research 2025): norms on heads; layers without a window rotate nothing.

EXAONE 4 has its norms after the blocks. K-EXAONE has them before, and the mixture of DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, windows
from apr_falsify.model.graph import Pick
from apr_falsify.model.names import HF_CORRECTED_MIXTURE, HF_DECODER, HF_QK_NORM, gguf_names, without
from apr_falsify.model.settings import Config, corrected_experts, listed_mixtures, window_by_pattern


def _settings(config: Config) -> Mapping[str, Any]:
    windows = window_by_pattern(config, 4)
    mixed = config.get("sliding_window") is not None
    return {"windows": windows, "rotated": tuple(size is not None for size in windows) if mixed else ()}


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    sizes = windows(gguf, 4)
    mixed = bool(gguf.get("attention.sliding_window"))
    return {"windows": sizes, "rotated": tuple(size is not None for size in sizes) if mixed else ()}


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, "attn_norm", "ffn_norm", *(r for r in HF_DECODER if r.endswith("_bias"))),
    **HF_QK_NORM,
    "attn_post_norm": "model.layers.{n}.post_attention_layernorm.weight",
    "ffn_post_norm": "model.layers.{n}.post_feedforward_layernorm.weight",
}

EXAONE4 = Family(
    name="exaone4",
    title="EXAONE 4",
    model_types=("exaone4",),
    gguf_architectures=("exaone4",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_of_gguf,
    layer=partial(decoder_layer, pre_norms=False, post_norms=True, qk_norm=HEAD, qk_norm_at=Pick.HEADS),
    settings=_settings,
    config_defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096},
)


def _of_mixtures(config: Config) -> Mapping[str, Any]:
    return {**_settings(config), **corrected_experts(config), **listed_mixtures(config)}


_NAMES_OF_MIXTURE: Mapping[str, str] = {
    **without(HF_DECODER, *(r for r in HF_DECODER if r.endswith("_bias"))),
    **HF_QK_NORM,
    **HF_CORRECTED_MIXTURE,
    "router_correction": "model.layers.{n}.mlp.e_score_correction_bias",
}


def _mixtures_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    found = {**gguf_settings.corrected_experts(gguf), **_of_gguf(gguf)}
    shared = gguf.whole("expert_shared_feed_forward_length", found["shared_intermediate"])
    cut = {name: found[name][: found["layers"]] for name in ("windows", "rotated")}
    return {**found, **cut, "shared_intermediate": shared}


EXAONE_MOE = Family(
    name="exaone_moe",
    title="K-EXAONE",
    model_types=("exaone_moe",),
    gguf_architectures=("exaone-moe",),
    weights=_NAMES_OF_MIXTURE,
    gguf_weights=gguf_names(_NAMES_OF_MIXTURE),
    gguf_settings=_mixtures_of_gguf,
    layer=partial(decoder_layer, qk_norm=HEAD, qk_norm_at=Pick.HEADS),
    settings=_of_mixtures,
    kept_in_f32=("router_correction",),
    config_keys={"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"},
    config_defaults={
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
)
