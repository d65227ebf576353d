"""Mixtral (Jiang et al. 2024) and OLMoE (Muennighoff et al. 2024): a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import WHOLE, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_DECODER, HF_MIXTURE, HF_QK_NORM, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, attention_bias, experts, refuse, window_everywhere

_EXPERTS = "model.layers.{n}.block_sparse_moe.experts.{e}."
_DENSE = ("gate", "up", "down", *MLP_BIASES)


def _of_olmoe(config: Config) -> Mapping[str, Any]:
    refuse(config, "clip_qkv")
    return {**attention_bias(config), **experts(config)}


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, *_DENSE, "q_bias", "k_bias", "v_bias", "o_bias"),
    "router": "model.layers.{n}.block_sparse_moe.gate.weight",
    "expert_gate": _EXPERTS + "w1.weight",
    "expert_up": _EXPERTS + "w3.weight",
    "expert_down": _EXPERTS + "w2.weight",
}
_NAMES_OF_OLMOE: Mapping[str, str] = {**without(HF_DECODER, *_DENSE), **HF_QK_NORM, **HF_MIXTURE}

MIXTRAL = Family(
    name="mixtral",
    title="Mixtral",
    model_types=("mixtral",),
    gguf_architectures=("llama",),
    gguf_key="expert_count",
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=lambda gguf: gguf_settings.experts(gguf, normed=True, width="feed_forward_length"),
    gguf_interleaved=True,
    modules={"router": "mlp.gate"},
    settings=lambda config: {
        **experts(config),
        "norm_topk_prob": True,
        "windows": window_everywhere(config),
    },
    config_keys={"moe_intermediate_size": "intermediate_size"},
    config_defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
)

OLMOE = Family(
    name="olmoe",
    title="OLMoE",
    model_types=("olmoe",),
    gguf_architectures=("olmoe",),
    weights=_NAMES_OF_OLMOE,
    gguf_weights=gguf_names(_NAMES_OF_OLMOE),
    gguf_settings=lambda gguf: gguf_settings.experts(gguf, normed=False, width="feed_forward_length"),
    layer=partial(decoder_layer, qk_norm=WHOLE),
    settings=_of_olmoe,
    config_keys={"moe_intermediate_size": "intermediate_size"},
    config_defaults={"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
)
