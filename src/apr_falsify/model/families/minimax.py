"""MiniMax-M2 (MiniMax 2025): q and k normed whole, rotated in part, and a corrected sigmoid router."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import WHOLE, decoder_layer
from apr_falsify.model.families.mixtral import MIXTRAL
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, scored_experts
from apr_falsify.model.names import HF_QK_NORM, gguf_names
from apr_falsify.model.rope import rope_of_config
from apr_falsify.model.settings import Config, experts


def _settings(config: Config) -> Mapping[str, Any]:
    return {
        **experts(config),
        **_rotated_in_part(config),
        "norm_topk_prob": True,
        "router_scoring": "sigmoid",
        "router_corrected": True,
    }


def _rotated_in_part(config: Config) -> Mapping[str, Any]:
    """Read ``rotary_dim``, in which published checkpoints say how much of a head is rotated."""
    if config.get("rotary_dim") is None:
        return {}
    share = {"partial_rotary_factor": config.whole("rotary_dim") / max(config.head_dim, 1)}
    return {"rope": rope_of_config({**share, **config.values})}


_NAMES: Mapping[str, str] = {
    **MIXTRAL.weights,
    **HF_QK_NORM,
    "router_correction": "model.layers.{n}.block_sparse_moe.e_score_correction_bias",
}


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {**scored_experts(gguf, "sigmoid"), "norm_topk_prob": True, "router_corrected": True}


MINIMAX_M2 = Family(
    name="minimax_m2",
    title="MiniMax-M2",
    model_types=("minimax_m2",),
    gguf_architectures=("minimax-m2",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_of_gguf,
    modules=MIXTRAL.modules,
    layer=partial(decoder_layer, qk_norm=WHOLE),
    settings=_settings,
    partial_rotary=True,
    config_keys={"moe_intermediate_size": "intermediate_size"},
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "rope_theta": 5e6,
    },
)
