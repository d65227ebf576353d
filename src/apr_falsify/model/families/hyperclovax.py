"""HyperCLOVA X SEED (NAVER 2025): a Granite with a norm after each block, whose logits are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.blocks import decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER
from apr_falsify.model.settings import Config, attention_bias, same_scale


def _settings(config: Config) -> Mapping[str, Any]:
    if not config.flag("use_post_norm", True):
        raise GeometryError("use_post_norm is false", expected="a model with a norm after each block")
    scale = config.get("attention_multiplier")
    return {
        **attention_bias(config),
        "mlp_bias": config.flag("mlp_bias"),
        "embed_scale": config.number("embedding_multiplier", 1.0),
        "attn_scales": () if scale is None else same_scale(config, config.number("attention_multiplier")),
        "residual_scale": config.number("residual_multiplier", 1.0),
        "logit_scale": config.number("logits_scaling", 1.0),
    }


HYPERCLOVAX = Family(
    name="hyperclovax",
    title="HyperCLOVA X SEED",
    model_types=("hyperclovax",),
    weights={
        **HF_DECODER,
        "attn_post_norm": "model.layers.{n}.post_norm1.weight",
        "ffn_post_norm": "model.layers.{n}.post_norm2.weight",
    },
    layer=partial(decoder_layer, post_norms=True),
    settings=_settings,
)
