"""Granite 3 with mixtures (Granite Team 2024): all experts in one tensor, and the multipliers of Granite.

A shared expert, where there is one, stands beside the mixture: the layer adds what both make.
"""

from __future__ import annotations

from dataclasses import replace

from apr_falsify.model import gguf_settings
from apr_falsify.model.blocks import beside, decoder_layer
from apr_falsify.model.families.granite import GRANITE, of_gguf
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Nodes
from apr_falsify.model.names import HF_DECODER, MLP_BIASES, gguf_names, without
from apr_falsify.model.settings import experts
from apr_falsify.model.shape import Geometry

_MIXTURE = "model.layers.{n}.block_sparse_moe."
_SHARED = "model.layers.{n}.shared_mlp."

_NAMES = {
    **without(HF_DECODER, "gate", "up", "down", *MLP_BIASES),
    "router": _MIXTURE + "router.layer.weight",
    "expert_gate": _MIXTURE + "input_linear.weight",
    "expert_up": _MIXTURE + "input_linear.weight",
    "expert_down": _MIXTURE + "output_linear.weight",
}

GRANITE_MOE = Family(
    name="granitemoe",
    title="Granite 3 MoE",
    model_types=("granitemoe",),
    gguf_architectures=("granitemoe",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=lambda gguf: {
        **of_gguf(gguf),
        **gguf_settings.experts(gguf, normed=True, width="feed_forward_length"),
    },
    gguf_interleaved=True,
    modules={"router": "block_sparse_moe.router"},
    fused=(("expert_gate", "expert_up"),),
    # Its softmax over the chosen experts alone is that over all, made to sum to 1.
    settings=lambda config: {**GRANITE.settings(config), **experts(config), "norm_topk_prob": True},
    config_keys={"moe_intermediate_size": "intermediate_size"},
    config_defaults={**GRANITE.config_defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
)


def _layer(geometry: Geometry, layer: int) -> Nodes:
    nodes = decoder_layer(geometry, layer)
    return tuple(beside(node, ".shared_mlp") for node in nodes) if geometry.shared_intermediate else nodes


_NAMES_OF_SHARED = {
    **_NAMES,
    "shared_gate": _SHARED + "input_linear.weight",
    "shared_up": _SHARED + "input_linear.weight",
    "shared_down": _SHARED + "output_linear.weight",
}

GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    name="granitemoeshared",
    title="Granite 3 MoE with a shared expert",
    model_types=("granitemoeshared",),
    gguf_key="expert_shared_feed_forward_length",
    weights=_NAMES_OF_SHARED,
    gguf_weights=gguf_names(_NAMES_OF_SHARED),
    gguf_settings=lambda gguf: {
        **GRANITE_MOE.gguf_settings(gguf),
        "shared_intermediate": gguf["expert_shared_feed_forward_length"],
    },
    fused=(*GRANITE_MOE.fused, ("shared_gate", "shared_up")),
    layer=_layer,
    settings=lambda config: {
        **GRANITE_MOE.settings(config),
        "shared_intermediate": config.get("shared_intermediate_size", 0),
    },
)
