"""LFM2 and its mixture (Liquid AI 2025): gated short convolutions, and attention in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr_falsify.model.blocks import HEAD, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, corrected_experts
from apr_falsify.model.graph import ModulePlace, Node, Nodes, Tap
from apr_falsify.model.mixers import ShortConv
from apr_falsify.model.mixing import conv_block, instead_of_attention
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, layers_of
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import items, whole

_L = "model.layers.{n}."
_PLACES: Mapping[str, Tap] = {
    "ffn_gate": Tap(module="gate"),
    "ffn_silu": Tap(module=ModulePlace.FUNCTION),  # a function, no module
}


def _layer(geometry: Geometry, layer: int) -> Nodes:
    nodes: Nodes = decoder_layer(geometry, layer, qk_norm=HEAD)
    if not geometry.attends_at(layer):
        nodes = instead_of_attention(nodes, conv_block(geometry))
    return tuple(_placed(node) for node in nodes)


def _placed(node: Node) -> Node:
    return replace(node, tap=_PLACES.get(node.stage, node.tap))


def _settings(config: Config) -> Mapping[str, Any]:
    listed = items(config.get("full_attn_idxs") or [*range(config.layers)], "full_attn_idxs")
    kinds = ["full_attention" if n in listed else "conv" for n in range(config.layers)]
    return {
        "attends": layers_of(
            Config({**config.values, "layer_types": config.get("layer_types") or kinds}),
            "full_attention",
            "conv",
            1,
        ),
        "mixer": ShortConv(kernel=config.whole("conv_L_cache"), bias=config.flag("conv_bias")),
    }


def _dense(config: Config) -> Mapping[str, Any]:
    """Read the width of the feed-forward block, which is two thirds of what is said, rounded up."""
    width = config.whole("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        width = int(config.number("block_ffn_dim_multiplier") * int(2 * width / 3))
        multiple = config.whole("block_multiple_of")
        width = -(-width // multiple) * multiple
    return {**_settings(config), "intermediate": width}


def _mixture(config: Config) -> Mapping[str, Any]:
    return {
        **_settings(config),
        "experts": config.whole("num_experts"),
        "experts_per_token": config.whole("num_experts_per_tok"),
        "moe_intermediate": config.whole("moe_intermediate_size"),
        "norm_topk_prob": config.flag("norm_topk_prob"),
        "routed_sum_eps": 1e-6,
        "router_scoring": "sigmoid",
        "router_corrected": config.flag("use_expert_bias"),
        "routed_scale": config.number("routed_scaling_factor"),
        "mixtures": tuple(n >= config.whole("num_dense_layers") for n in range(config.layers)),
    }


def _dense_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    """Read which layers have attention: those with heads of k and v."""
    stated = gguf["attention.head_count_kv"]
    heads = [whole(each, "heads of k and v") for each in items(stated, "attention.head_count_kv")]
    return {
        "kv_heads": max(heads, default=0),
        "attends": tuple(count > 0 for count in heads),
        "mixer": ShortConv(kernel=gguf.whole("shortconv.l_cache")),
    }


def _mixture_of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {
        **corrected_experts(gguf),
        **_dense_of_gguf(gguf),
        "norm_topk_prob": True,
        "routed_sum_eps": 1e-6,
    }


_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_L_cache": 3,
    "conv_bias": False,
    "rope_theta": 1e6,
}

_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, "q_bias", "k_bias", "v_bias", "o_bias", *MLP_BIASES),
    "attn_norm": _L + "operator_norm.weight",
    "ffn_norm": _L + "ffn_norm.weight",
    "q_norm": _L + "self_attn.q_layernorm.weight",
    "k_norm": _L + "self_attn.k_layernorm.weight",
    "o": _L + "self_attn.out_proj.weight",
    **{
        role: f"{_L}feed_forward.{name}.weight"
        for role, name in zip(("gate", "down", "up"), ("w1", "w2", "w3"), strict=True)
    },
    "conv": _L + "conv.conv.weight",
    "conv_bias": _L + "conv.conv.bias",
    "conv_proj": _L + "conv.in_proj.weight",
    "conv_proj_bias": _L + "conv.in_proj.bias",
    "conv_o": _L + "conv.out_proj.weight",
    "conv_o_bias": _L + "conv.out_proj.bias",
    "final_norm": "model.embedding_norm.weight",
}
_MIXED: Mapping[str, str] = {
    **_NAMES,
    "router": _L + "feed_forward.gate.weight",
    "router_correction": _L + "feed_forward.expert_bias",
    "expert_gate": _L + "feed_forward.experts.{e}.w1.weight",
    "expert_up": _L + "feed_forward.experts.{e}.w3.weight",
    "expert_down": _L + "feed_forward.experts.{e}.w2.weight",
}


def _of_llama_cpp(names: Mapping[str, str]) -> Mapping[str, str]:
    """Return llama.cpp's names; it knows no biases, and calls the last norm as the checkpoint does."""
    plain = without(names, *(role for role in names if role.startswith("conv") and role.endswith("_bias")))
    return {**gguf_names(plain), "final_norm": "token_embd_norm.weight"}


LFM2 = Family(
    name="lfm2",
    title="LFM2",
    model_types=("lfm2",),
    gguf_architectures=("lfm2",),
    weights=_NAMES,
    gguf_weights=_of_llama_cpp(_NAMES),
    gguf_settings=_dense_of_gguf,
    layer=_layer,
    settings=_dense,
    config_keys={
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embedding",
        "intermediate_size": "block_ff_dim",
    },
    config_defaults={
        **_DEFAULTS,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    },
)

LFM2_MOE = replace(
    LFM2,
    name="lfm2_moe",
    title="LFM2 MoE",
    model_types=("lfm2_moe",),
    gguf_architectures=("lfm2moe",),
    weights=_MIXED,
    gguf_weights=_of_llama_cpp(_MIXED),
    gguf_settings=_mixture_of_gguf,
    settings=_mixture,
    kept_in_f32=("router_correction",),
    config_defaults={
        **_DEFAULTS,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1792,
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "routed_scaling_factor": 1.0,
        "num_dense_layers": 2,
    },
)
