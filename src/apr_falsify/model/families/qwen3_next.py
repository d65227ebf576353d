"""Qwen3-Next (2025) and the text models of Qwen3.5 (2026): a gated delta rule in three layers of four.

The others have attention whose output passes a gate. Qwen3-Next holds q|k|v|z and b|a of linear attention key
head by key head; in both q and the gate of attention lie head by head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.families.qwen_moe import QWEN2_MOE
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Nodes
from apr_falsify.model.mixers import GatedDelta
from apr_falsify.model.mixing import delta_block, gated_attention, instead_of_attention
from apr_falsify.model.names import HF_DECODER, HF_QK_NORM, MLP_BIASES, without
from apr_falsify.model.settings import Config, attention_bias, experts, layers_of
from apr_falsify.model.shape import Geometry

_LINEAR = "model.layers.{n}.linear_attn."
_Rows = Callable[[Geometry], tuple[int, ...]]


def _layer(geometry: Geometry, layer: int) -> Nodes:
    nodes = decoder_layer(geometry, layer, qk_norm=HEAD)
    if geometry.attends_at(layer):
        return gated_attention(nodes, geometry.qkv_bias)
    return instead_of_attention(nodes, delta_block(geometry))


def _by_head(part: int, geometry: Geometry) -> tuple[int, ...]:
    """Return the rows of q, or of the gate, in a tensor of both head by head."""
    rows = np.arange(2 * geometry.heads * geometry.head_dim).reshape(-1, 2, geometry.head_dim)
    return tuple(rows[:, part].reshape(-1).tolist())


def _by_key_head(role: str, geometry: Geometry) -> tuple[int, ...]:
    """Return the rows of a role in q|k|v|z, or in b|a, key head by key head."""
    sizes = geometry.mixer
    assert isinstance(sizes, GatedDelta)
    each = sizes.value_heads // sizes.key_heads
    widths: tuple[int, ...] = (sizes.key_dim, sizes.key_dim, each * sizes.value_dim, each * sizes.value_dim)
    if role in ("scan_b", "scan_a"):
        widths = (each, each)
    groups = np.arange(sizes.key_heads * sum(widths)).reshape(sizes.key_heads, -1)
    parts = [part.reshape(-1) for part in np.split(groups, np.cumsum(widths)[:-1], axis=1)]
    own = {"scan_qkv": parts[:3], "scan_z": parts[-1:], "scan_b": parts[:1], "scan_a": parts[-1:]}[role]
    return tuple(np.concatenate(own).tolist())


_OF_ATTENTION: Mapping[str, _Rows] = {
    f"{role}{suffix}": partial(_by_head, part)
    for part, role in enumerate(("q", "attn_gate"))
    for suffix in ("", "_bias")
}


def _settings(config: Config) -> Mapping[str, Any]:
    return {
        **attention_bias(config),
        **experts(config),
        "shared_intermediate": config.get("shared_expert_intermediate_size") or 0,
        "shared_gated": config.get("shared_expert_intermediate_size") is not None,
        "attends": layers_of(config, "full_attention", "linear_attention", 4),
        "mixer": GatedDelta(
            kernel=config.whole("linear_conv_kernel_dim"),
            key_heads=config.whole("linear_num_key_heads"),
            value_heads=config.whole("linear_num_value_heads"),
            key_dim=config.whole("linear_key_head_dim"),
            value_dim=config.whole("linear_value_head_dim"),
        ),
    }


_ATTENTION: Mapping[str, str] = {
    **HF_DECODER,
    **HF_QK_NORM,
    "attn_gate": HF_DECODER["q"],
    "attn_gate_bias": HF_DECODER["q_bias"],
    "conv": _LINEAR + "conv1d.weight",
    "decay_log": _LINEAR + "A_log",
    "decay_shift": _LINEAR + "dt_bias",
    "scan_norm": _LINEAR + "norm.weight",
    "scan_o": _LINEAR + "out_proj.weight",
}
_MIXTURE = {role: name for role, name in QWEN2_MOE.weights.items() if ".mlp." in name}
_APART = {f"scan_{role}": f"{_LINEAR}in_proj_{role}.weight" for role in ("qkv", "z", "b", "a")}
_DEFAULTS: Mapping[str, Any] = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}

QWEN3_5 = Family(
    name="qwen3_5",
    title="Qwen3.5 (text)",
    model_types=("qwen3_5_text",),
    part_of=("qwen3_5",),
    weights={**without(_ATTENTION, *MLP_BIASES), **_APART},
    layer=_layer,
    settings=_settings,
    partial_rotary=True,
    norm_offset=1.0,
    plain_norms=("scan_norm",),
    listed_rows=_OF_ATTENTION,
    config_defaults={**_DEFAULTS, "num_key_value_heads": 4},
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    title="Qwen3.5 MoE (text)",
    model_types=("qwen3_5_moe_text",),
    part_of=("qwen3_5_moe",),
    weights={**QWEN3_5.weights, **_MIXTURE},
    fused=(("expert_gate", "expert_up"),),
    config_defaults={
        **_DEFAULTS,
        "num_key_value_heads": 2,
        "intermediate_size": 1,  # no layer is dense
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
)

QWEN3_NEXT = replace(
    QWEN3_5,
    name="qwen3_next",
    title="Qwen3-Next",
    model_types=("qwen3_next",),
    part_of=(),
    weights={
        **without(_ATTENTION, *MLP_BIASES),
        **_MIXTURE,
        **dict.fromkeys(("scan_qkv", "scan_z"), _LINEAR + "in_proj_qkvz.weight"),
        **dict.fromkeys(("scan_b", "scan_a"), _LINEAR + "in_proj_ba.weight"),
    },
    listed_rows={**_OF_ATTENTION, **{role: partial(_by_key_head, role) for role in _APART}},
    config_defaults={
        **_DEFAULTS,
        "num_key_value_heads": 2,
        "intermediate_size": 5632,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
)
