"""Granite 4 (Granite Team 2025): Mamba-2 in most layers, attention in some, usually without RoPE.

Each layer ends with a shared expert, with or without a mixture beside it; the multipliers are Granite 3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.blocks import beside, decoder_layer
from apr_falsify.model.families.granite import GRANITE
from apr_falsify.model.families.granitemoe import GRANITE_MOE_SHARED
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Nodes
from apr_falsify.model.mixers import StateSpace
from apr_falsify.model.mixing import instead_of_attention, state_space_block
from apr_falsify.model.settings import Config, experts, layer_kinds, step_limits
from apr_falsify.model.shape import Geometry

_MAMBA = "model.layers.{n}.mamba."


def state_space_names(module: str) -> dict[str, str]:
    """Return what transformers calls the tensors of a Mamba-2 layer, given its module's path and a dot."""
    projected = ("scan_z", "scan_xbc", "scan_dt")
    return {
        **dict.fromkeys(projected, module + "in_proj.weight"),
        **dict.fromkeys((f"{role}_bias" for role in projected), module + "in_proj.bias"),
        "conv": module + "conv1d.weight",
        "conv_bias": module + "conv1d.bias",
        "dt_shift": module + "dt_bias",
        "decay_log": module + "A_log",
        "scan_skip": module + "D",
        "scan_norm": module + "norm.weight",
        "scan_o": module + "out_proj.weight",
        "scan_o_bias": module + "out_proj.bias",
    }


STATE_SPACE_FUSED = (("scan_z", "scan_xbc", "scan_dt"), ("scan_z_bias", "scan_xbc_bias", "scan_dt_bias"))
"""What lies one below the other in its tensors."""
STATE_SPACE_AXES: Mapping[str, tuple[str, ...]] = {"scan_norm": ("scan",)}


def _layer(geometry: Geometry, layer: int) -> Nodes:
    nodes = decoder_layer(geometry, layer, activation_at=".shared_mlp.activation")
    if not geometry.attends_at(layer):
        nodes = instead_of_attention(nodes, state_space_block(geometry))
    return tuple(beside(node, ".shared_mlp") for node in nodes)


def _sizes(config: Config) -> StateSpace:
    heads, width = config.whole("mamba_n_heads"), config.whole("mamba_expand") * config.whole("hidden_size")
    head_dim = width // max(heads, 1)
    if config.get("mamba_d_head", "auto") not in ("auto", head_dim) or heads * head_dim != width:
        raise GeometryError(
            f"{heads} heads of {config.get('mamba_d_head')} are not mamba_expand * hidden_size = {width}"
        )
    least, largest = step_limits(config, "time_step_limit")
    return StateSpace(
        kernel=config.whole("mamba_d_conv"),
        heads=heads,
        head_dim=head_dim,
        groups=config.whole("mamba_n_groups"),
        state=config.whole("mamba_d_state"),
        activation=config["hidden_act"],
        conv_bias=config.flag("mamba_conv_bias"),
        bias=config.flag("mamba_proj_bias"),
        least_step=least,
        largest_step=largest,
    )


def _settings(config: Config) -> Mapping[str, Any]:
    shared, mixed = config.whole("shared_intermediate_size"), config.whole("num_local_experts") > 0
    if config.get("position_embedding_type") not in (None, "nope", "rope"):
        raise GeometryError(
            f"position_embedding_type is {config['position_embedding_type']!r}", expected="rope or null"
        )
    rotates = config.get("position_embedding_type") == "rope"
    kinds = layer_kinds(config, ("linear_attention", "full_attention"), "linear_attention")
    mixture = {**experts(config), "norm_topk_prob": True}
    return {
        **GRANITE.settings(config),
        **(mixture if mixed else {}),
        "intermediate": shared,
        "shared_intermediate": shared,
        "mlp_bias": False,
        "attends": tuple(kind == "full_attention" for kind in kinds),
        "mixer": _sizes(config),
        "rotated": (rotates,) * config.layers,
    }


GRANITE_HYBRID: Family = replace(
    GRANITE_MOE_SHARED,
    name="granitemoehybrid",
    title="Granite 4",
    model_types=("granitemoehybrid",),
    gguf_architectures=(),
    gguf_key="",
    gguf_weights={},
    weights={
        **GRANITE_MOE_SHARED.weights,
        "gate": GRANITE_MOE_SHARED.weights["shared_gate"],
        "up": GRANITE_MOE_SHARED.weights["shared_up"],
        "down": GRANITE_MOE_SHARED.weights["shared_down"],
        **state_space_names(_MAMBA),
    },
    fused=(*GRANITE_MOE_SHARED.fused, ("gate", "up"), *STATE_SPACE_FUSED),
    layer=_layer,
    settings=_settings,
    role_axes=STATE_SPACE_AXES,
    config_defaults={
        **GRANITE_MOE_SHARED.config_defaults,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
)
