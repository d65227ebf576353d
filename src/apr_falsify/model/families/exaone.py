"""EXAONE 4 (LG AI Research 2025): norms after blocks and on heads; layers without a window rotate nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, windows
from apr_falsify.model.graph import Pick
from apr_falsify.model.names import HF_DECODER, HF_QK_NORM, gguf_names, without
from apr_falsify.model.settings import Config, window_by_pattern


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
