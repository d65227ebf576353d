"""What many families share: a layer's attention and feed-forward blocks, and the two ends of a decoder.

Each function gives nodes in forward order; keywords say where a family goes another way. What a config can
switch (biases, soft-caps, windows, mixtures) is read from the geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr_falsify.model.graph import ModulePlace, Node, Nodes, Pick, Tap
from apr_falsify.model.latent import latent_heads
from apr_falsify.model.shape import EXPERT_BIASES, EXPERT_ROLES, SHARED_ROLES, Geometry
from apr_falsify.model.stages import LAYER_INPUT

HEAD = "head"
"""A norm of each head's channels by themselves, with one weight for all heads."""
WHOLE = "whole"
"""A norm over all channels of q (or of k) together."""

_INPUT, _OUTPUT = Pick.INPUT, Pick.OUTPUT
_SEEN = Tap(module=ModulePlace.ATTENTION_FUNCTION)


def decoder_ends(geometry: Geometry, *, norm: str = "rms_norm", norm_bias: bool = True) -> Nodes:
    """Return the embedding, the final norm and the output head."""
    embedding = Node(
        stage="embedding",
        operator="embed",
        inputs={},
        roles=("embed", *(("positions",) if geometry.positions else ())),
        tap=Tap(module=ModulePlace.LAYER, pick=_INPUT),
    )
    final = norm_node("final_norm", "post_ffn_residual", norm=norm, bias=norm_bias)
    further = geometry.logit_scale != 1.0 or geometry.final_softcap is not None
    product = Node(
        stage="lm_head_proj" if further else "lm_head",
        operator="head",
        inputs={"final_norm": "final_norm"},
        roles=(
            "embed" if geometry.tied else "lm_head",
            *(("lm_head_bias",) if geometry.head_bias else ()),
        ),
        tap=Tap(module="lm_head"),
    )
    logits = Node(stage="lm_head", operator="logits", inputs={"lm_head_proj": "lm_head_proj"})
    return (embedding, final, product, *((logits,) if further else ()))


def norm_node(
    stage: str,
    source: str,
    *,
    norm: str = "rms_norm",
    bias: bool = True,
    argument: str = "",
    role: str = "",
    tap: Tap | None = None,
) -> Node:
    """Return a norm; its weight, and a LayerNorm's bias, are in the role ``role`` (else the stage's name)."""
    role = role or stage
    return Node(
        stage=stage,
        operator=norm,
        inputs={argument or source: source},
        roles=(role, f"{role}_bias") if norm == "layer_norm" and bias else (role,),
        constants={"role": role},
        tap=tap or Tap(module=role),
    )


def decoder_layer(
    geometry: Geometry,
    layer: int,
    *,
    norm: str = "rms_norm",
    norm_bias: bool = True,
    pre_norms: bool = True,
    post_norms: bool = False,
    one_norm: bool = True,
    qk_norm: str = "",
    qk_norm_at: Pick = _OUTPUT,
    gated: bool = True,
    activation_at: str = ".mlp.act_fn",
) -> Nodes:
    """Return one layer: attention, then a feed-forward block or a mixture, each added to the stream.

    In a parallel layer (``Geometry.parallel``) both read what enters it, and are added to it together.

    Args:
        geometry: the model's geometry.
        layer: the layer.
        norm: the operator of its norms.
        norm_bias: whether they have a bias, where they are LayerNorms.
        pre_norms: whether each block reads the stream through a norm.
        post_norms: whether each block's output passes a norm before it is added.
        one_norm: whether both blocks of a parallel layer read it through one norm.
        qk_norm: whether q and k pass a norm before they are rotated: of each head, over all, or none.
        qk_norm_at: how transformers' module of that norm shows its output.
        gated: whether the feed-forward block has a gate; without one the activation is that of ``ffn_up``.
        activation_at: the path of the activation's module within a layer.

    """
    words: Mapping[str, Any] = {
        "norm": norm,
        "norm_bias": norm_bias,
        "pre_norm": pre_norms,
        "post_norm": post_norms,
    }
    feed_forward = (
        mixture(geometry, norm=norm)
        if geometry.is_mixture(layer)
        else feed_forward_block(
            geometry, gated=gated, one_norm=one_norm, activation_at=activation_at, **words
        )
    )
    return (*attention_block(geometry, qk_norm=qk_norm, qk_norm_at=qk_norm_at, **words), *feed_forward)


def attention_block(
    geometry: Geometry,
    *,
    norm: str,
    norm_bias: bool = True,
    pre_norm: bool = True,
    post_norm: bool = False,
    qk_norm: str = "",
    qk_norm_at: Pick = _OUTPUT,
) -> Nodes:
    """Return the attention of one layer, up to the residual stream after it where there is one."""
    source = "attn_norm" if pre_norm else LAYER_INPUT
    fused = "qkv_bias" if geometry.qkv_bias else "qkv_matmul"
    at = Tap(module="q_a" if geometry.q_latent else "q", pick=_INPUT)
    nodes = [norm_node("attn_norm", LAYER_INPUT, norm=norm, bias=norm_bias, tap=at)] if pre_norm else []
    projection = Node(
        stage="qkv_matmul",
        operator="linear",
        inputs={"attn_norm": source},
        roles=("q", "k", "v"),
        tap=Tap(module="q"),
    )
    nodes += latent_heads(geometry, source) if geometry.kv_latent else [projection]
    if geometry.qkv_bias:
        nodes.append(
            Node(
                stage="qkv_bias",
                operator="bias",
                inputs={"qkv_matmul": "qkv_matmul"},
                roles=("q_bias", "k_bias", "v_bias"),
                tap=Tap(module="q"),
            )
        )
    for role in "qk":
        nodes += _rotated(role, fused, qk_norm, norm, qk_norm_at)
    nodes += _scores_and_mix(geometry, fused)
    nodes += _projected(
        "attn_out", "attention", "o", geometry.output_bias, post_norm, norm, stage_before="attn_proj"
    )
    if geometry.parallel:
        return tuple(nodes)
    reader = "ffn_norm" if pre_norm else "up"
    nodes.append(
        residual_node("post_attn_residual", LAYER_INPUT, "attn_out", tap=Tap(module=reader, pick=_INPUT))
    )
    return tuple(nodes)


def _rotated(role: str, fused: str, qk_norm: str, norm: str, pick: Pick) -> list[Node]:
    """Return what becomes of q or k between the projection and the scores."""
    before = []
    source = {"qkv_bias": fused}
    if qk_norm:
        stage = f"{role}_norm"
        before = [
            Node(
                stage=stage,
                operator=norm,
                inputs=source,
                roles=(stage,),
                constants={"role": stage, "part": role, "over": qk_norm},
                tap=Tap(module=stage, pick=pick),
            )
        ]
        source = {stage: stage}
    rotary = Node(
        stage=f"{role}_post_rope",
        operator="rotary",
        inputs=source,
        constants={"part": role},
        tap=_SEEN,
    )
    return [*before, rotary]


def _scores(geometry: Geometry) -> list[Node]:
    capped = geometry.attn_softcap is not None
    product = Node(
        stage="attn_scores_uncapped" if capped else "attn_scores",
        operator="scores",
        inputs={"q_post_rope": "q_post_rope", "k_post_rope": "k_post_rope"},
        tap=_SEEN,
    )
    return [product, *([_softcap("attn_scores", "attn_softcap", _SEEN)] if capped else [])]


def _softcap(stage: str, constant: str, tap: Tap) -> Node:
    before = f"{stage}_uncapped"
    return Node(
        stage=stage, operator="softcap", inputs={before: before}, constants={"cap": constant}, tap=tap
    )


def _scores_and_mix(geometry: Geometry, fused: str) -> list[Node]:
    return [
        *_scores(geometry),
        Node(
            stage="attn_softmax",
            operator="sink_softmax" if geometry.sinks else "softmax",
            inputs={"attn_scores": "attn_scores"},
            roles=("sinks",) if geometry.sinks else (),
            tap=_SEEN,
        ),
        Node(
            stage="attention",
            operator="mix",
            inputs={"attn_softmax": "attn_softmax", "qkv_bias": fused},
            tap=Tap(module="o", pick=_INPUT),
        ),
    ]


def _projected(
    stage: str, source: str, role: str, biased: bool, post_norm: bool, norm: str, *, stage_before: str
) -> list[Node]:
    """Return a block's last projection, and the norm that its output passes where there is one."""
    projection = Node(
        stage=stage_before if post_norm else stage,
        operator="linear",
        inputs={source: source},
        roles=(role, *((f"{role}_bias",) if biased else ())),
        tap=Tap(module=role),
    )
    if not post_norm:
        return [projection]
    name = f"{stage.removesuffix('_out')}_post_norm"
    return [projection, norm_node(stage, stage_before, norm=norm, role=name)]


def residual_node(stage: str, stream: str, *branches: str, tap: Tap) -> Node:
    """Return the sum of the residual stream and what one or more blocks add to it."""
    return Node(stage=stage, operator="add", inputs={name: name for name in (stream, *branches)}, tap=tap)


def feed_forward_block(
    geometry: Geometry,
    *,
    norm: str,
    norm_bias: bool = True,
    pre_norm: bool = True,
    post_norm: bool = False,
    one_norm: bool = True,
    gated: bool = True,
    activation_at: str = ".mlp.act_fn",
) -> Nodes:
    """Return the feed-forward block of one layer, up to the residual stream after it."""
    stream = LAYER_INPUT if geometry.parallel else "post_attn_residual"
    source, nodes = "ffn_norm", []
    if geometry.parallel and one_norm:
        source = "attn_norm"
    elif pre_norm:
        nodes.append(norm_node("ffn_norm", stream, norm=norm, bias=norm_bias, argument="post_attn_residual"))
    else:
        source = "post_attn_residual"
    nodes += _widened(geometry, source, gated, activation_at)
    last = Node(
        stage="ffn_out" if not post_norm else "ffn_proj",
        operator="linear",
        inputs={"ffn_swigl": "ffn_swigl" if gated else "ffn_silu"},
        roles=("down", *(("down_bias",) if geometry.mlp_bias else ())),
        tap=Tap(module="down"),
    )
    nodes.append(last)
    if post_norm:
        nodes.append(norm_node("ffn_out", "ffn_proj", norm=norm, bias=norm_bias, role="ffn_post_norm"))
    added = ("attn_out", "ffn_out") if geometry.parallel else ("ffn_out",)
    whole = Node(
        stage="post_ffn_residual",
        operator="add",
        inputs={"post_attn_residual": stream, **{name: name for name in added}},
        tap=Tap(module=ModulePlace.LAYER),
    )
    return (*nodes, whole)


def _widened(geometry: Geometry, source: str, gated: bool, activation_at: str) -> list[Node]:
    """Return what is as wide as the block: gate, up, activation and product, as far as a family has them."""
    up = _fed("up", source, geometry, Tap(module="up"))
    activation = Node(
        stage="ffn_silu",
        operator="activation",
        inputs={"ffn_gate": "ffn_gate" if gated else "ffn_up"},
        tap=Tap(module=activation_at),
    )
    if not gated:
        return [up, activation]
    gate = _fed("gate", source, geometry, Tap(module=activation_at, pick=_INPUT))
    product = Node(
        stage="ffn_swigl",
        operator="gate",
        inputs={"ffn_silu": "ffn_silu", "ffn_up": "ffn_up"},
        tap=Tap(module="down", pick=_INPUT),
    )
    return [gate, up, activation, product]


def _fed(role: str, source: str, geometry: Geometry, tap: Tap) -> Node:
    bias = (f"{role}_bias",) if geometry.mlp_bias else ()
    return Node(
        stage=f"ffn_{role}", operator="linear", inputs={"ffn_norm": source}, roles=(role, *bias), tap=tap
    )


def mixture(geometry: Geometry, *, norm: str) -> Nodes:
    """Return a mixture of experts in place of the feed-forward block: its router sees the last token too."""
    experts: tuple[str, ...] = (*EXPERT_ROLES, *(EXPERT_BIASES if geometry.expert_bias else ()))
    if geometry.shared_intermediate:
        experts += (*SHARED_ROLES, *(("shared_router",) if geometry.shared_gated else ()))
    logits = {"router_logits": "router_logits"}
    corrected = ("router_correction",) if geometry.router_corrected else ()
    return (
        norm_node("ffn_norm", "post_attn_residual", norm=norm),
        Node(
            stage="router_logits",
            operator="linear",
            inputs={"ffn_norm": "ffn_norm"},
            roles=("router", *(("router_bias",) if geometry.expert_bias else ())),
            tap=Tap(module="router", pick=Pick.ROUTER_LOGITS),
        ),
        Node(
            stage="router_weights",
            operator="routing",
            inputs=logits,
            roles=corrected,
            tap=Tap(module="router", pick=Pick.ROUTING),
        ),
        Node(
            stage="moe_router_indices",
            operator="chosen_experts",
            inputs=logits,
            roles=corrected,
            tap=Tap(module="router", pick=Pick.LAST_INDICES),
        ),
        Node(
            stage="moe_router",
            operator="expert_weights",
            inputs={**logits, "moe_router_indices": "moe_router_indices"},
            tap=Tap(module="router", pick=Pick.LAST_WEIGHTS),
        ),
        Node(
            stage="moe_ffn_out",
            operator="last_mixture",
            inputs={
                "ffn_norm": "ffn_norm",
                "moe_router": "moe_router",
                "moe_router_indices": "moe_router_indices",
            },
            roles=experts,
            tap=Tap(module=ModulePlace.MIXTURE, pick=Pick.LAST_ROW),
        ),
        Node(
            stage="ffn_out",
            operator="mixture",
            inputs={"ffn_norm": "ffn_norm", "router_weights": "router_weights"},
            roles=experts,
            tap=Tap(module=ModulePlace.MIXTURE),
        ),
        residual_node(
            "post_ffn_residual", "post_attn_residual", "ffn_out", tap=Tap(module=ModulePlace.LAYER)
        ),
    )


def beside(node: Node, module: str) -> Node:
    """Return ``node`` where its shared expert stands in a module of its own, beside the mixture."""
    if node.tap is None or node.tap.module != ModulePlace.MIXTURE:
        return node
    return replace(node, tap=replace(node.tap, added=module))
