"""Phi-3 (Abdin et al. 2024): q|k|v and gate|up each in one tensor, longrope, heads rotated in part."""

from __future__ import annotations

from functools import partial

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import GGUF_FUSED_GATE_UP, GGUF_FUSED_QKV, HF_PHI3, gguf_names
from apr_falsify.model.settings import window_everywhere

PHI3 = Family(
    name="phi3",
    title="Phi-3",
    model_types=("phi3",),
    gguf_architectures=("phi3",),
    weights=HF_PHI3,
    gguf_weights=gguf_names(HF_PHI3, {**GGUF_FUSED_QKV, **GGUF_FUSED_GATE_UP}),
    gguf_settings=lambda gguf: {"windows": gguf_settings.windows(gguf, 0)},
    layer=partial(decoder_layer, activation_at=".mlp.activation_fn"),
    settings=lambda config: {"windows": window_everywhere(config)},
    partial_rotary=True,
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    fused=(("q", "k", "v"), ("gate", "up")),
    config_defaults={"original_max_position_embeddings": 4096, "max_position_embeddings": 4096},
)
