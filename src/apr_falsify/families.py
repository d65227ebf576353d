"""What differs between model families: one table, from which oracle, runtime, replay and weights work.

Weight names are those of the published checkpoints of each family (transformers 5) and of the
GGUF specification. ``{n}`` is the layer. A role that a family lacks has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from apr_falsify.errors import UnknownFamilyError, nearest


class Presence(StrEnum):
    """Whether a family's projections carry a bias."""

    ALWAYS = "always"
    NEVER = "never"
    CONFIG = "config"
    """As the config key of the same table row says."""


class Window(StrEnum):
    """Which layers of a family attend through a sliding window, where its config names one."""

    NONE = "none"
    EVERY_LAYER = "every-layer"
    LAYER_TYPES = "layer-types"
    """Those that ``layer_types`` calls ``sliding_attention``; else layers from ``max_window_layers`` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the table.

    Attributes:
        name: our name for it.
        title: its name for people.
        model_types: values of ``model_type`` in config.json.
        gguf_architectures: values of ``general.architecture`` in GGUF.
        weights: role -> tensor name in a HuggingFace checkpoint.
        gguf_weights: role -> tensor name in GGUF.
        qkv_bias: whether q, k and v carry a bias.
        output_bias: whether the attention's output projection does.
        mlp_bias: whether gate, up and down do.
        qk_norm: whether q and k pass a per-head RMSNorm before RoPE.
        window: which layers have a sliding window.
        gguf_interleaved: whether conversion to GGUF permutes q and k into interleaved rotary pairs.
        config_defaults: what transformers 5 takes for a key that config.json leaves out, where that is
            neither a plain default nor derived from another key.

    """

    name: str
    title: str
    model_types: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    weights: Mapping[str, str]
    gguf_weights: Mapping[str, str]
    qkv_bias: Presence = Presence.NEVER
    output_bias: Presence = Presence.NEVER
    mlp_bias: Presence = Presence.NEVER
    qk_norm: bool = False
    window: Window = Window.NONE
    gguf_interleaved: bool = False
    config_defaults: Mapping[str, Any] = field(default_factory=dict)


ACTIVATIONS: tuple[str, ...] = ("silu",)
"""The feed-forward activations that have a formula, by the name that config.json uses."""

_HF_LAYER = "model.layers.{n}."
_HF_DECODER: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "attn_norm": _HF_LAYER + "input_layernorm.weight",
    "q": _HF_LAYER + "self_attn.q_proj.weight",
    "k": _HF_LAYER + "self_attn.k_proj.weight",
    "v": _HF_LAYER + "self_attn.v_proj.weight",
    "q_bias": _HF_LAYER + "self_attn.q_proj.bias",
    "k_bias": _HF_LAYER + "self_attn.k_proj.bias",
    "v_bias": _HF_LAYER + "self_attn.v_proj.bias",
    "o": _HF_LAYER + "self_attn.o_proj.weight",
    "o_bias": _HF_LAYER + "self_attn.o_proj.bias",
    "ffn_norm": _HF_LAYER + "post_attention_layernorm.weight",
    "gate": _HF_LAYER + "mlp.gate_proj.weight",
    "gate_bias": _HF_LAYER + "mlp.gate_proj.bias",
    "up": _HF_LAYER + "mlp.up_proj.weight",
    "up_bias": _HF_LAYER + "mlp.up_proj.bias",
    "down": _HF_LAYER + "mlp.down_proj.weight",
    "down_bias": _HF_LAYER + "mlp.down_proj.bias",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
_HF_QK_NORM: Mapping[str, str] = {
    "q_norm": _HF_LAYER + "self_attn.q_norm.weight",
    "k_norm": _HF_LAYER + "self_attn.k_norm.weight",
}
_GGUF_DECODER: Mapping[str, str] = {
    "embed": "token_embd.weight",
    "attn_norm": "blk.{n}.attn_norm.weight",
    "q": "blk.{n}.attn_q.weight",
    "k": "blk.{n}.attn_k.weight",
    "v": "blk.{n}.attn_v.weight",
    "q_bias": "blk.{n}.attn_q.bias",
    "k_bias": "blk.{n}.attn_k.bias",
    "v_bias": "blk.{n}.attn_v.bias",
    "o": "blk.{n}.attn_output.weight",
    "o_bias": "blk.{n}.attn_output.bias",
    "ffn_norm": "blk.{n}.ffn_norm.weight",
    "gate": "blk.{n}.ffn_gate.weight",
    "gate_bias": "blk.{n}.ffn_gate.bias",
    "up": "blk.{n}.ffn_up.weight",
    "up_bias": "blk.{n}.ffn_up.bias",
    "down": "blk.{n}.ffn_down.weight",
    "down_bias": "blk.{n}.ffn_down.bias",
    "final_norm": "output_norm.weight",
    "lm_head": "output.weight",
}
_GGUF_QK_NORM: Mapping[str, str] = {
    "q_norm": "blk.{n}.attn_q_norm.weight",
    "k_norm": "blk.{n}.attn_k_norm.weight",
}

_QWEN_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="qwen2",
        title="Qwen2 / Qwen2.5",
        model_types=("qwen2",),
        gguf_architectures=("qwen2",),
        weights=_HF_DECODER,
        gguf_weights=_GGUF_DECODER,
        qkv_bias=Presence.ALWAYS,
        window=Window.LAYER_TYPES,
        config_defaults=_QWEN_DEFAULTS,
    ),
    Family(
        name="llama",
        title="Llama, SmolLM",
        model_types=("llama",),
        gguf_architectures=("llama",),
        weights=_HF_DECODER,
        gguf_weights=_GGUF_DECODER,
        qkv_bias=Presence.CONFIG,
        output_bias=Presence.CONFIG,
        mlp_bias=Presence.CONFIG,
        gguf_interleaved=True,
    ),
    Family(
        name="qwen3",
        title="Qwen3",
        model_types=("qwen3",),
        gguf_architectures=("qwen3",),
        weights={**_HF_DECODER, **_HF_QK_NORM},
        gguf_weights={**_GGUF_DECODER, **_GGUF_QK_NORM},
        qkv_bias=Presence.CONFIG,
        output_bias=Presence.CONFIG,
        qk_norm=True,
        window=Window.LAYER_TYPES,
        config_defaults={**_QWEN_DEFAULTS, "head_dim": 128},
    ),
    Family(
        name="mistral",
        title="Mistral",
        model_types=("mistral",),
        gguf_architectures=(),  # llama.cpp converts Mistral under the architecture "llama"
        weights=_HF_DECODER,
        gguf_weights=_GGUF_DECODER,
        window=Window.EVERY_LAYER,
        gguf_interleaved=True,
        config_defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
)
"""The families that can be captured, run and replayed."""


def family(name: str) -> Family:
    """Return the row called ``name``, our own name for a family.

    Raises:
        UnknownFamilyError: the table has no such row.

    """
    return _lookup(name, {row.name: row for row in FAMILIES}, "family")


def family_of_model_type(model_type: str, where: object = None) -> Family:
    """Return the row whose config.json says ``model_type``.

    Raises:
        UnknownFamilyError: the table has no such row; the known ones are listed.

    """
    rows = {value: row for row in FAMILIES for value in row.model_types}
    return _lookup(model_type, rows, "model_type", where)


def family_of_gguf(architecture: str, where: object = None) -> Family:
    """Return the row whose GGUF says ``architecture``.

    Raises:
        UnknownFamilyError: the table has no such row; the known ones are listed.

    """
    rows = {value: row for row in FAMILIES for value in row.gguf_architectures}
    return _lookup(architecture, rows, "general.architecture", where)


def _lookup(name: str, rows: Mapping[str, Family], key: str, where: object = None) -> Family:
    try:
        return rows[name]
    except KeyError:
        raise UnknownFamilyError(
            f"{key} {name!r} is not a known model family",
            where=where,
            expected="one of " + ", ".join(sorted(rows)),
            remedy=nearest(name, rows)
            or "a model of a listed family; src/apr_falsify/families.py has the table",
        ) from None
