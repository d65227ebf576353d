"""Llama 4 (Meta 2025), its text model: chunks, layers without RoPE, and experts whose input is weighted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.blocks import decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, experts
from apr_falsify.model.graph import Node, Nodes, Pick, Tap
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.rewired import followed
from apr_falsify.model.settings import Config, attention_bias, is_kind, rotated_layers
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import items

_MLP = "model.layers.{n}.feed_forward."


def _layer(geometry: Geometry, layer: int) -> Nodes:
    nodes = decoder_layer(geometry, layer, activation_at=".feed_forward.activation_fn")
    rotated = geometry.rope_at(layer).kind != "none"
    if rotated and geometry.qk_normed:
        for call, role in enumerate("qk"):  # one module norms both
            stage, shown = f"{role}_post_rope", Tap(module=".self_attn.qk_norm", pick=Pick.HEADS_INPUT)
            norm = Node(stage=f"{role}_l2_norm", operator="l2_norm", inputs={stage: stage})
            nodes = followed(nodes, stage, norm, Tap(module=shown.module, pick=shown.pick, call=(call, 2)))
    if not rotated and geometry.temperature_scale:
        inputs = {"q_post_rope": "q_post_rope"}
        tempered = Node(stage="q_tempered", operator="temperature", inputs=inputs)
        nodes = followed(nodes, "q_post_rope", tempered, Tap(module="q"))
    return nodes


def _settings(config: Config) -> Mapping[str, Any]:
    rotated = rotated_layers(config)
    kinds = config.get("layer_types") or [
        "chunked_attention" if turned else "full_attention" for turned in rotated
    ]
    chunk, step = config.get("attention_chunk_size"), config.whole("interleave_moe_layer_step")
    mixed = config.get("moe_layers")
    mixed = range(step - 1, config.layers, step) if mixed is None else items(mixed, "moe_layers")
    return {
        **attention_bias(config),
        "rotated": rotated,
        "chunks": tuple(
            chunk if is_kind(kind, "chunked_attention", "full_attention") else None for kind in kinds
        ),
        "qk_normed": config.flag("use_qk_norm"),
        "temperature_scale": config.number("attn_scale") if config.flag("attn_temperature_tuning") else 0.0,
        "temperature_floor": config.number("floor_scale"),
        "experts": config.whole("num_local_experts"),
        "experts_per_token": config.whole("num_experts_per_tok"),
        "moe_intermediate": config.whole("moe_intermediate_size"),
        "shared_intermediate": config.whole("moe_intermediate_size"),
        "router_scoring": "sigmoid",
        "weighted_input": True,
        "mixtures": tuple(n in mixed for n in range(config.layers)),
    }


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read what a file says; chunks, temperature and the layers without RoPE stand in llama.cpp's code."""
    step, layers = gguf.whole("interleave_moe_layer_step"), range(gguf.layers)
    mixed = gguf.get("attention.sliding_window") != 0
    rotated = tuple(not mixed or (n + 1) % 4 != 0 for n in layers)
    return {
        **experts(gguf, normed=False),
        "rotated": rotated,
        "chunks": tuple(8192 if mixed and turned else None for turned in rotated),
        "qk_normed": gguf["expert_count"] != 128,
        "temperature_scale": 0.1 if mixed else 0.0,
        "temperature_floor": 8192.0,
        "shared_intermediate": gguf["expert_feed_forward_length"],
        "router_scoring": "sigmoid",
        "weighted_input": True,
        "mixtures": tuple(step > 0 and (n + 1) % step == 0 for n in layers),
    }


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *MLP_BIASES),
    **{role: f"{_MLP}{role}_proj.weight" for role in ("gate", "up", "down")},
    **{f"shared_{role}": f"{_MLP}shared_expert.{role}_proj.weight" for role in ("gate", "up", "down")},
    "router": _MLP + "router.weight",
    "expert_gate": _MLP + "experts.gate_up_proj",
    "expert_up": _MLP + "experts.gate_up_proj",
    "expert_down": _MLP + "experts.down_proj",
}

LLAMA4 = Family(
    name="llama4",
    title="Llama 4 (text)",
    model_types=("llama4_text",),
    part_of=("llama4",),
    gguf_architectures=("llama4",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=_of_gguf,
    gguf_interleaved=True,
    layer=_layer,
    settings=_settings,
    interleaved=True,
    softmax_upcast=False,
    expert_columns=dict.fromkeys(("expert_gate", "expert_up", "expert_down"), (0, 1)),
    fused=(("expert_gate", "expert_up"),),
    config_keys={"moe_intermediate_size": "intermediate_size", "intermediate_size": "intermediate_size_mlp"},
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_theta": 5e5,
    },
)
