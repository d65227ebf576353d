"""Latent attention (DeepSeek-AI 2024, the report on DeepSeek-V2, section 2.1): q, k and v of narrow latents.

``c_q = norm(W_qa x)``, ``c_kv = norm(W_kva x)``; ``W_qb c_q`` gives q of all heads and ``W_kvb c_kv`` of each
head first k without its rotated part, then v. The part of k that is rotated comes from x itself, one for all
heads. Of each head of q and of k the last channels are rotated.
"""

from __future__ import annotations

from apr_falsify.model.graph import ModulePlace, Node, Nodes, Pick, Tap
from apr_falsify.model.shape import Geometry

LATENT_EPS = 1e-6
"""The epsilon of the latents' norms, which no config names: that of DeepSeek's code and of transformers'."""


def latent_heads(geometry: Geometry, source: str) -> Nodes:
    """Return what makes q|k|v of the stage ``source``, all heads and before RoPE."""
    nodes: list[Node] = []
    below, role = source, "q"
    if geometry.q_latent:
        nodes += _latent("q_latent", source, "q_a", geometry.output_bias)
        below, role = "q_latent_norm", "q_b"
    nodes.append(_product("q_up", below, role))
    nodes += _latent("kv_latent", source, "kv_a", geometry.output_bias)
    # transformers hands it the latents of all tokens as one head, as its cache keeps them.
    nodes.append(_product("kv_up", "kv_latent_norm", "kv_b", pick=Pick.HEADS))
    nodes.append(_product("k_shared", source, "k_rope", biased=geometry.output_bias))
    rotated = Node(
        stage="k_rope",
        operator="shared_rotary",
        inputs={"k_shared": "k_shared"},
        tap=Tap(module=ModulePlace.ATTENTION_FUNCTION),
    )
    joined = Node(
        stage="qkv_matmul",
        operator="latent_heads",
        inputs={name: name for name in ("q_up", "kv_up", "k_shared")},
        tap=Tap(module=role),
    )
    return (*nodes, rotated, joined)


def _latent(stage: str, source: str, role: str, biased: bool) -> tuple[Node, Node]:
    """Return a latent and its norm."""
    norm = Node(
        stage=f"{stage}_norm",
        operator="rms_norm",
        inputs={stage: stage},
        roles=(f"{role}_norm",),
        constants={"role": f"{role}_norm", "eps": LATENT_EPS},
        tap=Tap(module=f"{role}_norm"),
    )
    return _product(stage, source, role, biased=biased), norm


def _product(stage: str, source: str, role: str, *, biased: bool = False, pick: Pick = Pick.OUTPUT) -> Node:
    argument = source if source.endswith("_norm") else "attn_norm"
    return Node(
        stage=stage,
        operator="linear",
        inputs={argument: source},
        roles=(role, *((f"{role}_bias",) if biased else ())),
        tap=Tap(module=role, pick=pick),
    )
