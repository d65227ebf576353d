"""Nemotron-H (NVIDIA 2025) and Nemotron Nano 2: each layer is one block, Mamba-2, attention or feed-forward.

No layer is rotated, and the feed-forward block has no gate. Layers with a mixture (Nemotron 3) have experts
without a gate too, for which there is no formula here: such a model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.blocks import attention_block, decoder_ends, feed_forward_block
from apr_falsify.model.families.granite_hybrid import (
    STATE_SPACE_AXES,
    STATE_SPACE_FUSED,
    state_space_names,
)
from apr_falsify.model.family import Family
from apr_falsify.model.graph import ModulePlace, Node, Nodes, Tap
from apr_falsify.model.mixers import StateSpace
from apr_falsify.model.mixing import state_space_block
from apr_falsify.model.settings import Config, layer_kinds
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT
from apr_falsify.reading import text

_L = "model.layers.{n}."
_KINDS: Mapping[str, str] = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""What ``hybrid_override_pattern`` calls the kinds of layers."""


def _layer(geometry: Geometry, layer: int) -> Nodes:
    alone = replace(geometry, parallel=True)  # blocks that read what enters the layer
    if geometry.feeds_at(layer):
        nodes = feed_forward_block(
            alone, norm="rms_norm", one_norm=False, gated=False, activation_at=".mixer.act_fn"
        )
        return (*nodes[:-1], _added("ffn_out"))
    mixed = (
        attention_block(alone, norm="rms_norm") if geometry.attends_at(layer) else state_space_block(alone)
    )
    return (*mixed, _added("attn_out"))


def _added(branch: str) -> Node:
    return Node(
        stage="post_ffn_residual",
        operator="add",
        inputs={"post_attn_residual": LAYER_INPUT, branch: branch},
        tap=Tap(module=ModulePlace.LAYER),
    )


def _kinds(config: Config) -> tuple[str, ...]:
    pattern = config.get("hybrid_override_pattern")
    if pattern is not None and not (config.get("layer_types") or config.get("layers_block_type")):
        listed = [_KINDS.get(sign, sign) for sign in text(pattern, "hybrid_override_pattern")]
        config = Config({**config.values, "layers_block_type": listed})
    return layer_kinds(config, ("linear_attention", "full_attention", "mlp"))


def _settings(config: Config) -> Mapping[str, Any]:
    if config.get("sliding_window") is not None:
        raise GeometryError(
            "sliding_window is set", expected="attention to every token, as transformers has it"
        )
    if config.flag("tie_word_embeddings"):
        raise GeometryError("tie_word_embeddings is true", expected="an output head of its own")
    if config.flag("attention_bias"):
        raise GeometryError(
            "attention_bias is true", expected="attention without biases, as transformers has it"
        )
    kinds = _kinds(config)
    return {
        "mlp_bias": config.flag("mlp_bias"),
        "attends": tuple(kind == "full_attention" for kind in kinds),
        "feeds": tuple(kind == "mlp" for kind in kinds),
        "rotated": (False,) * config.layers,
        "mixer": StateSpace(
            kernel=config.whole("conv_kernel"),
            heads=config.whole("mamba_num_heads"),
            head_dim=config.whole("mamba_head_dim"),
            groups=config.whole("n_groups"),
            state=config.whole("ssm_state_size"),
            activation=config["mamba_hidden_act"],
            conv_bias=config.flag("use_conv_bias"),
            bias=config.flag("use_bias"),
            least_step=config.number("time_step_min"),
        ),
    }


NEMOTRON_H = Family(
    name="nemotron_h",
    title="Nemotron-H",
    model_types=("nemotron_h",),
    weights={
        "embed": "model.embeddings.weight",
        **dict.fromkeys(("attn_norm", "ffn_norm"), _L + "norm.weight"),
        **{role: f"{_L}mixer.{role}_proj.weight" for role in ("q", "k", "v", "o", "up", "down")},
        **{f"{role}_bias": f"{_L}mixer.{role}_proj.bias" for role in ("up", "down")},
        **state_space_names(_L + "mixer."),
        "final_norm": "model.norm_f.weight",
        "lm_head": "lm_head.weight",
    },
    layer=_layer,
    ends=partial(decoder_ends, norm="rms_norm"),
    settings=_settings,
    fused=STATE_SPACE_FUSED,
    role_axes=STATE_SPACE_AXES,
    published_code=("modeling_nemotron_h.NemotronHForCausalLM",),
    config_keys={
        "hidden_act": "mlp_hidden_act",
        "rms_norm_eps": "layer_norm_epsilon",
        "n_groups": "mamba_n_groups",
        "conv_kernel": "mamba_d_conv",
        "use_conv_bias": "mamba_conv_bias",
        "time_step_min": "mamba_dt_min",
    },
    config_defaults={
        "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "time_step_min": 0.001,
    },
)
