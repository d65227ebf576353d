"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), of the stream, of a block, or of q and k.

A norm of q or k goes over each head by itself (one weight of D channels) or over all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.blocks import HEAD
from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.heads import known_part_of, part_of, part_text
from apr_falsify.operators.operator import Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return ``x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
    return np.asarray(x * scale * weight.astype(x.dtype, copy=False))


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Return ``(x - mean) / sqrt(variance + eps) * weight (+ bias)`` over the last axis (Ba et al. 2016)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + x.dtype.type(eps))
    normed = np.asarray(centred * scale * weight.astype(x.dtype, copy=False))
    return normed if bias is None else np.asarray(normed + bias.astype(x.dtype, copy=False))


def eps_of(node: Node, geometry: Geometry) -> float:
    """Return the epsilon of a norm: the model's, unless the node has one of its own."""
    return float(node.constants.get("eps", geometry.norm_eps))


def _norm(node: Node, x: Array, site: Site) -> Array:
    role, eps = node["role"], eps_of(node, site.geometry)
    if node.operator == "layer_norm":
        bias = site.vector(f"{role}_bias") if f"{role}_bias" in node.roles else None
        return layer_norm(x, site.vector(role), bias, eps)
    return rms_norm(x, site.vector(role), eps)


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    if "part" not in node.constants:
        return _norm(node, only(inputs), site)
    x = part_of(node, inputs, site.geometry)
    grouped = _grouped(node, x, site.geometry)
    return _norm(node, grouped, site).reshape(x.shape)


def _grouped(node: Node, x: Any, geometry: Geometry) -> Any:
    """Return q or k as its norm takes it: each head apart, or all together."""
    return x.reshape(*x.shape[:-1], -1, geometry.head_dim) if node["over"] == HEAD else x


def norm_variance(y: F64, width: int, store: float) -> F64:
    """Return the variance of a norm over ``width`` values: its sum of squares, and its own roundings."""
    # sqrt(width) / 6 is the root mean square of a sequential sum's error. It is common to a token's channels,
    # so averaging over them does not reduce it: three times its root mean square is allowed.
    relative = UNIT * (math.sqrt(width) / 2 + FEW)
    return squared(y * relative) + stored(y, store, 2)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    if "part" not in node.constants:
        return _normed(node, only(ins), y, site, store)
    known = known_part_of(node, ins, site.geometry)
    grouped = Known(
        value=_grouped(node, known.value, site.geometry),
        sigma=None if known.sigma is None else _grouped(node, known.sigma, site.geometry),
    )
    return _normed(node, grouped, _grouped(node, y, site.geometry), site, store).reshape(y.shape)


def _normed(node: Node, known: Known, y: F64, site: NoisySite, store: float) -> F64:
    """Count the norm of ``known``, whose normalised values may be rounded before the weight is applied."""
    weight, eps = site.vector(node["role"]), eps_of(node, site.geometry)
    found = _COUNTED[node.operator](known, y, weight, eps, store) + lost(store, weight)
    # An f32 sum of squares that overflows is infinite, and what is divided by its root is 0.
    overflows = np.sum(np.square(known.value), axis=-1, keepdims=True) > np.finfo(np.float32).max
    return np.asarray(found + np.where(overflows, np.square(y), 0.0))


def _rms_normed(known: Known, y: F64, weight: Array, eps: float, store: float) -> F64:
    own = norm_variance(y, y.shape[-1], store)
    if known.sigma is None:
        return own
    slope = np.abs(weight) / np.sqrt(np.mean(squared(known.value), axis=-1, keepdims=True) + eps)
    return np.asarray(own + squared(slope * known.sigma))


def _layer_normed(known: Known, y: F64, weight: Array, eps: float, store: float) -> F64:
    """Count what the subtraction of the mean leaves of the roundings of mean and values."""
    x, width = known.value, y.shape[-1]
    centred = x - np.mean(x, axis=-1, keepdims=True)
    slope = np.abs(weight) / np.sqrt(np.mean(squared(centred), axis=-1, keepdims=True) + eps)
    mean = np.sqrt(np.mean(squared(x), axis=-1, keepdims=True)) * (math.sqrt(width) / 6 + 1)
    subtracted = (squared(mean) + squared(x)) * UNIT**2 + known.variance
    return np.asarray(
        norm_variance(y, width, store)
        + norm_variance(slope * centred, width, 0)
        + squared(slope) * subtracted
    )


_COUNTED: Mapping[str, Callable[[Known, F64, Array, float, float], F64]] = {
    "rms_norm": _rms_normed,
    "layer_norm": _layer_normed,
}


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    if "part" not in node.constants:
        return _lines(node, node.stage, argument(node))
    if node["over"] != HEAD:
        return (f"x = {part_text(node)}", *_lines(node, node.stage, "x"))
    return (
        f"x = {part_text(node)}.reshape(tokens, -1, head_dim)",
        *_lines(node, "x", "x"),
        f"{node.stage} = x.reshape(tokens, -1)",
    )


def _lines(node: Node, name: str, x: str) -> Lines:
    role, eps = node["role"], node.constants.get("eps", "norm_eps")
    if node.operator == "layer_norm":
        bias = f" + {role}_bias" if f"{role}_bias" in node.roles else ""
        return (
            f"centred = {x} - np.mean({x}, axis=-1, keepdims=True)",
            f"spread = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + {eps})",
            f"{name} = centred / spread * {role}_weight" + bias,
        )
    return (f"{name} = {x} / np.sqrt(np.mean({x}**2, axis=-1, keepdims=True) + {eps}) * {role}_weight",)


RMS_NORM = Operator(name="rms_norm", values=_values, variance=_variance, text=_text)
LAYER_NORM = Operator(name="layer_norm", values=_values, variance=_variance, text=_text)
