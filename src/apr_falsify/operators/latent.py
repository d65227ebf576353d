"""Latent attention's own steps: the heads put together from what the latents gave; k's shared part turned.

DeepSeek-V2 (DeepSeek-AI 2024), section 2.1: a head of k is its own part beside the shared one, and v stands
beside the own part in what the up-projection gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Inputs, Lines, Operator, only
from apr_falsify.operators.rotary import angle_errors_at, turned_variance
from apr_falsify.operators.rotation import rotate
from apr_falsify.operators.roundoff import F64, Ins, NoisySite
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def joined(q: Array, up: Array, shared: Array, geometry: Geometry) -> Array:
    """Return q|k|v: [..., H*D + K*D + K*Dv].

    Args:
        q: queries of all heads [..., H*D].
        up: of each head k without its rotated part, then v: [..., K*(D-R+Dv)].
        shared: the part of k that is rotated [..., R].
        geometry: the model's geometry.

    """
    heads = up.reshape(*up.shape[:-1], geometry.kv_heads, -1)
    own, v = np.split(heads, [heads.shape[-1] - geometry.value_dim], axis=-1)
    spread = np.broadcast_to(shared[..., None, :], (*own.shape[:-1], shared.shape[-1]))
    k = np.concatenate((own, spread), axis=-1)
    return np.concatenate((q, *(part.reshape(*up.shape[:-1], -1) for part in (k, v))), axis=-1)


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    return joined(inputs["q_up"], inputs["kv_up"], inputs["k_shared"], site.geometry)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count what each value carries: nothing is computed."""
    carried = {name: np.broadcast_to(known.variance, known.value.shape) for name, known in ins.items()}
    found = joined(carried["q_up"], carried["kv_up"], carried["k_shared"], site.geometry)
    return np.asarray(found, dtype=np.float64)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "up = kv_up.reshape(tokens, kv_heads, -1)",
        "own, v = up[..., :-v_head_dim], up[..., -v_head_dim:]",
        "spread = np.broadcast_to(k_shared[:, None], (tokens, kv_heads, k_shared.shape[1]))",
        "k = np.concatenate([own, spread], axis=-1)",
        f"{node.stage} = np.concatenate([q_up, k.reshape(tokens, -1), v.reshape(tokens, -1)], axis=-1)",
    )


def whole(rope: Rope) -> Rope:
    """Return a rotary embedding of a part of each head as one of that part alone."""
    kept = {name: value for name, value in rope.parameters.items() if name != "partial_rotary_factor"}
    return replace(rope, parameters=kept)


def _turned(node: Node, inputs: Inputs, site: Site) -> Array:
    x = only(inputs)
    return rotate(x, whole(site.geometry.rope_at(site.layer)), x.shape[-1], site.passes)


def _turned_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return turned_variance(only(ins), y, y.shape[-1], 0, angle_errors_at(site, len(y)), store)


def _turned_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "angles = np.arange(tokens)[:, None] * np.array(rope_frequencies)",
        "cos, sin = np.cos(angles) * rope_factor, np.sin(angles) * rope_factor",
        "a, b = np.split(k_shared, 2, axis=-1)",
        f"{node.stage} = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
    )


LATENT_HEADS = Operator(name="latent_heads", values=_values, variance=_variance, text=_text)
SHARED_ROTARY = Operator(
    name="shared_rotary",
    values=_turned,
    variance=_turned_variance,
    text=_turned_text,
    over_tokens=True,
    kept=(),
)
