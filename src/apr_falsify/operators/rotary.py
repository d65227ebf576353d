"""Rotary position embedding of q or k (Su et al. 2021); nothing is rotated where positions are learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.heads import known_part_of, part_of, part_text
from apr_falsify.operators.operator import Inputs, Lines, Operator
from apr_falsify.operators.rotation import farthest, rope_frequencies, rotate
from apr_falsify.operators.roundoff import F64, UNIT, Ins, Known, NoisySite, lost, squared
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    geometry = site.geometry
    rope, start = geometry.rope_at(site.layer), geometry.rotary_start(site.layer)
    return rotate(part_of(node, inputs, geometry), rope, geometry.head_dim, site.passes, start)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known = known_part_of(node, ins, site.geometry)
    size, errors = site.geometry.head_dim, angle_errors_at(site, len(y))
    start = site.geometry.first_of(2 * errors.shape[1])  # which may turn other pairs
    return turned_variance(known, y, size, start, errors, store)


def turned_variance(known: Known, y: F64, head_dim: int, start: int, errors: F64, store: float) -> F64:
    """Return the variance of a rotation's result ``y`` [S, heads * D], of pairs from ``start`` of a head on.

    Cos, sin and products are rounded, and the angle, whose ``errors`` [S, pairs] grow with position.
    """
    pairs, shape = errors.shape[1], (len(y), -1, head_dim)
    relative = squared(UNIT * (errors[:, None, None, :] + 2)) + 2 * max(store, UNIT) ** 2
    turned = np.s_[..., start : start + 2 * pairs]
    variance = np.zeros_like(y.reshape(shape))
    if known.sigma is not None:
        variance += squared(known.sigma).reshape(shape)
        variance[turned] = _over_pairs(variance[turned], pairs)
    variance[turned] += _over_pairs(squared(y).reshape(shape)[turned], pairs, relative)
    return np.asarray(variance.reshape(y.shape) + 2 * lost(store))


def angle_errors_at(site: NoisySite, rows: int) -> F64:
    """Return the rounding of the angles of a rotation there, [rows, pairs], in unit roundoffs."""
    if site.angle_errors is not None:
        return site.angle_errors
    return declared_angle_errors(site.geometry, site.layer, site.passes, rows)


def declared_angle_errors(geometry: Geometry, layer: int | None, passes: Passes, rows: int) -> F64:
    """Return the rounding of the angles of the model's own rotation, [rows, pairs], in unit roundoffs."""
    rope, at = geometry.rope_at(layer), passes.at[passes.tokens - rows :]
    found = []
    for span in passes.spans(rows):
        frequencies, _ = rope_frequencies(rope, geometry.head_dim, farthest(at[span]))
        exponents = np.linspace(0, 1, len(frequencies), endpoint=False)
        found.append(angle_errors(at[span], frequencies, math.log(max(rope.theta, 2.0)) * exponents))
    return np.concatenate(found)


def angle_errors(positions: F64, frequencies: F64, logarithms: F64) -> F64:
    """Return the rounding of ``positions`` x ``frequencies``, [S, pairs], in unit roundoffs.

    A frequency is the exponential of its logarithm, which is rounded before.
    """
    return np.asarray(np.abs(np.outer(positions, frequencies)) * (2 + np.abs(logarithms)))


def _over_pairs(squares: F64, pairs: int, times: F64 | float = 1.0) -> F64:
    """Return for both members of each rotary pair the sum over the two: [S, heads, 2 * pairs]."""
    tokens, heads, _ = squares.shape
    split = squares.reshape(tokens, heads, 2, pairs)
    summed = np.sum(split, axis=2, keepdims=True) * times
    return np.broadcast_to(summed, split.shape).reshape(tokens, heads, 2 * pairs)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        f"x = {part_text(node)}.reshape(tokens, -1, head_dim)",
        "angles = np.arange(tokens)[:, None, None] * np.array(rope_frequencies)",
        "cos, sin = np.cos(angles) * rope_factor, np.sin(angles) * rope_factor",
        "half = len(rope_frequencies)",
        *_turned_text(geometry.rotary_start(layer)),
        f"{node.stage} = turned.reshape(tokens, -1)",
    )


def _turned_text(start: int) -> Lines:
    if not start:
        return (
            "a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]",
            "turned = np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)",
        )
    return (
        "rest, a, b = np.split(x, [head_dim - 2 * half, head_dim - half], axis=-1)",
        "turned = np.concatenate([rest, a * cos - b * sin, b * cos + a * sin], axis=-1)",
    )


ROTARY = Operator(name="rotary", values=_values, variance=_variance, text=_text, over_tokens=True, kept=())
