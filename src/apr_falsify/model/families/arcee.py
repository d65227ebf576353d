"""Arcee AFM (Arcee AI 2025): a Llama without a gate, whose activation is the square of relu."""

from __future__ import annotations

from functools import partial

from apr_falsify.model.blocks import decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, gguf_names, without
from apr_falsify.model.settings import attention_bias

ARCEE = Family(
    name="arcee",
    title="Arcee AFM",
    model_types=("arcee",),
    gguf_architectures=("arcee",),
    weights=without(HF_DECODER, "gate", "gate_bias"),
    gguf_weights=gguf_names(without(HF_DECODER, "gate", "gate_bias")),
    gguf_interleaved=True,
    layer=partial(decoder_layer, gated=False),
    settings=lambda config: {**attention_bias(config), "mlp_bias": config.flag("mlp_bias")},
    config_defaults={"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
)
