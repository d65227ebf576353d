"""The text models of Qwen2.5-VL and Qwen3-VL (2025): on text alone, plain RoPE.

M-RoPE turns the pairs of a head by three positions, which are equal in text. Only the text part of a
checkpoint is opened.
"""

from __future__ import annotations

from dataclasses import replace

from apr_falsify.model.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from apr_falsify.model.gguf_settings import sections
from apr_falsify.model.settings import window_by_layer

_ALIASES = {"mrope": "default"}

QWEN2_5_VL = replace(
    QWEN2,
    name="qwen2_5_vl",
    title="Qwen2.5-VL (text)",
    model_types=("qwen2_5_vl_text",),
    part_of=("qwen2_5_vl",),
    gguf_architectures=("qwen2vl",),
    gguf_settings=lambda gguf: {**QWEN2.gguf_settings(gguf), **sections(gguf)},
    in_apr=False,
    rope_aliases=_ALIASES,
    settings=lambda config: {"qkv_bias": True, "windows": window_by_layer(config)},
    config_defaults={
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_window_layers": 80,
        "rope_theta": 1e6,
    },
)

QWEN3_VL = replace(
    QWEN3,
    name="qwen3_vl",
    title="Qwen3-VL (text)",
    model_types=("qwen3_vl_text",),
    part_of=("qwen3_vl",),
    gguf_architectures=("qwen3vl",),
    gguf_settings=sections,
    in_apr=False,
    rope_aliases=_ALIASES,
)

QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    name="qwen3_vl_moe",
    title="Qwen3-VL MoE (text)",
    model_types=("qwen3_vl_moe_text",),
    part_of=("qwen3_vl_moe",),
    gguf_architectures=("qwen3vlmoe",),
    gguf_settings=lambda gguf: {**QWEN3_MOE.gguf_settings(gguf), **sections(gguf)},
    rope_aliases=_ALIASES,
    weights={
        **QWEN3_MOE.weights,
        "expert_gate": "model.layers.{n}.mlp.experts.gate_up_proj",
        "expert_up": "model.layers.{n}.mlp.experts.gate_up_proj",
        "expert_down": "model.layers.{n}.mlp.experts.down_proj",
    },
    expert_columns=dict.fromkeys(("expert_gate", "expert_up", "expert_down"), (0, 1)),
    fused=(("expert_gate", "expert_up"),),
    experts_as_used=True,
    config_defaults={**QWEN3_MOE.config_defaults, "norm_topk_prob": True},
)
