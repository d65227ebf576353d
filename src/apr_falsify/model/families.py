"""What differs between model families: one table, from which oracle, runtime, replay and weights work.

Weight names are in ``names.py``; a role that a family lacks has no name. What a family's row does not say
is the same in all: pre-norm residual blocks, causal attention, keys and values shared by groups of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from apr_falsify.errors import UnknownFamilyError, nearest
from apr_falsify.model.names import (
    GGUF_DECODER,
    GGUF_QK_NORM,
    HF_DECODER,
    HF_GEMMA2,
    HF_GPT2,
    HF_MIXTURE,
    HF_PHI3,
    HF_QK_NORM,
    MLP_BIASES,
)


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
    """Where ``use_sliding_window``: those that ``layer_types`` calls ``sliding_attention``; else layers from
    ``max_window_layers`` on."""
    FLAGGED = "flagged"
    """Every layer where ``use_sliding_window``, none elsewhere."""
    PATTERN = "pattern"
    """Those that ``layer_types`` calls ``sliding_attention``; else all but every ``window_pattern``-th."""


class Norm(StrEnum):
    """The norm of a family."""

    RMS = "rms"
    """Divided by the root mean square, times a weight (Zhang & Sennrich 2019)."""
    LAYER = "layer"
    """Mean subtracted, divided by the standard deviation, times a weight, plus a bias (Ba et al. 2016)."""


class Positions(StrEnum):
    """How a family tells tokens' positions apart."""

    ROTARY = "rotary"
    """q and k are rotated."""
    LEARNED = "learned"
    """A learned row is added to each token's embedding; q_post_rope and k_post_rope are q and k."""


class ScoreScale(StrEnum):
    """What q.k is multiplied with."""

    HEAD_DIM = "head-dim"
    """1 / sqrt(head_dim)."""
    QUERY_SCALAR = "query-scalar"
    """1 / sqrt of the config's ``query_pre_attn_scalar``."""
    FLAGS = "flags"
    """1 / sqrt(head_dim) if ``scale_attn_weights``; over layer + 1 if ``scale_attn_by_inverse_layer_idx``."""


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
        norm: the kind of its norms.
        norm_offset: what is added to a norm's weight as a HuggingFace checkpoint stores it.
        post_norms: whether the outputs of attention and of the feed-forward block pass a norm before they are
            added to the residual stream.
        gated: whether the feed-forward block has a gate; without one the activation is that of ``up``.
        mixture: whether layers may be mixtures of experts with a router.
        positions: how positions are told apart.
        partial_rotary: whether ``partial_rotary_factor`` counts: a head may be rotated in part.
        rope_aliases: this family's own words for rotary scaling rules.
        local_rope: whether layers with a window have a rotary embedding of their own.
        score_scale: what q.k is multiplied with.
        softcaps: which values pass cap * tanh(x / cap): ``attn`` scores, ``final`` logits.
        embed_scaled: whether embeddings are multiplied with sqrt(hidden).
        fused: groups of roles that lie one below the other in one tensor.
        transposed: roles whose tensor a HuggingFace checkpoint stores [in, out].
        window_pattern: for ``Window.PATTERN``: every which layer has no window where the config names none.
        embedding_module: the module of transformers whose output is the stage ``embedding``, where that is
            not the embedding table's own.
        activation_module: the module of transformers, within a layer, that is the activation.
        softmax_upcast: whether transformers computes the softmax in f32 whatever the model's format.
        config_keys: this family's own names of config keys, by their usual names.
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
    norm: Norm = Norm.RMS
    norm_offset: float = 0.0
    post_norms: bool = False
    gated: bool = True
    mixture: bool = False
    positions: Positions = Positions.ROTARY
    partial_rotary: bool = False
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    local_rope: bool = False
    score_scale: ScoreScale = ScoreScale.HEAD_DIM
    softcaps: tuple[str, ...] = ()
    embed_scaled: bool = False
    fused: tuple[tuple[str, ...], ...] = ()
    transposed: tuple[str, ...] = ()
    window_pattern: int = 0
    embedding_module: str = ""
    activation_module: str = "mlp.act_fn"
    softmax_upcast: bool = True
    config_keys: Mapping[str, str] = field(default_factory=dict)
    config_defaults: Mapping[str, Any] = field(default_factory=dict)


ACTIVATIONS: tuple[str, ...] = ("silu", "gelu_new", "gelu_pytorch_tanh")
"""The feed-forward activations that have a formula, by the name that config.json uses."""

_QWEN_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_GEMMA: Mapping[str, Any] = {
    "qkv_bias": Presence.CONFIG,
    "output_bias": Presence.CONFIG,
    "norm_offset": 1.0,
    "post_norms": True,
    "embed_scaled": True,
    "score_scale": ScoreScale.QUERY_SCALAR,
    "config_keys": {"hidden_act": "hidden_activation"},
}
"""What Gemma 2 and 3 have in common."""

_GEMMA_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="qwen2",
        title="Qwen2 / Qwen2.5",
        model_types=("qwen2",),
        gguf_architectures=("qwen2",),
        weights=HF_DECODER,
        gguf_weights=GGUF_DECODER,
        qkv_bias=Presence.ALWAYS,
        window=Window.LAYER_TYPES,
        config_defaults=_QWEN_DEFAULTS,
    ),
    Family(
        name="llama",
        title="Llama, SmolLM",
        model_types=("llama",),
        gguf_architectures=("llama",),
        weights=HF_DECODER,
        gguf_weights=GGUF_DECODER,
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
        weights={**HF_DECODER, **HF_QK_NORM},
        gguf_weights={**GGUF_DECODER, **GGUF_QK_NORM},
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
        weights=HF_DECODER,
        gguf_weights=GGUF_DECODER,
        window=Window.EVERY_LAYER,
        gguf_interleaved=True,
        config_defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        name="phi3",
        title="Phi-3",
        model_types=("phi3",),
        gguf_architectures=(),
        weights=HF_PHI3,
        gguf_weights={},
        window=Window.EVERY_LAYER,
        partial_rotary=True,
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        fused=(("q", "k", "v"), ("gate", "up")),
        activation_module="mlp.activation_fn",
        config_defaults={"original_max_position_embeddings": 4096, "max_position_embeddings": 4096},
    ),
    Family(
        name="gpt2",
        title="GPT-2",
        model_types=("gpt2",),
        gguf_architectures=(),
        weights=HF_GPT2,
        gguf_weights={},
        qkv_bias=Presence.ALWAYS,
        output_bias=Presence.ALWAYS,
        mlp_bias=Presence.ALWAYS,
        norm=Norm.LAYER,
        gated=False,
        positions=Positions.LEARNED,
        score_scale=ScoreScale.FLAGS,
        fused=(("q", "k", "v"), ("q_bias", "k_bias", "v_bias")),
        transposed=("q", "k", "v", "o", "up", "down"),
        embedding_module="drop",
        activation_module="mlp.act",
        softmax_upcast=False,
        config_keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        config_defaults={
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
            "scale_attn_weights": True,
        },
    ),
    Family(
        name="gemma2",
        title="Gemma 2",
        model_types=("gemma2",),
        gguf_architectures=(),
        weights=HF_GEMMA2,
        gguf_weights={},
        window=Window.PATTERN,
        window_pattern=2,
        softcaps=("attn", "final"),
        config_defaults={
            **_GEMMA_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        **_GEMMA,
    ),
    Family(
        name="gemma3",
        title="Gemma 3 (text)",
        model_types=("gemma3_text",),
        gguf_architectures=(),
        weights={**HF_GEMMA2, **HF_QK_NORM},
        gguf_weights={},
        qk_norm=True,
        window=Window.PATTERN,
        window_pattern=6,
        softcaps=("final",),  # attn_logit_softcapping is stored, and never used
        local_rope=True,
        config_defaults={**_GEMMA_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        **_GEMMA,
    ),
    Family(
        name="qwen3_moe",
        title="Qwen3-MoE",
        model_types=("qwen3_moe",),
        gguf_architectures=(),
        weights={
            **{role: name for role, name in HF_DECODER.items() if role not in MLP_BIASES},
            **HF_QK_NORM,
            **HF_MIXTURE,
        },
        gguf_weights={},
        qkv_bias=Presence.CONFIG,
        output_bias=Presence.CONFIG,
        qk_norm=True,
        mixture=True,
        window=Window.FLAGGED,
        config_defaults={"num_key_value_heads": 4, "sliding_window": 4096, "num_experts_per_tok": 8},
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
            or "a model of a listed family; src/apr_falsify/model/families.py has the table",
        ) from None
