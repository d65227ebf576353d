"""Faults of one place or size: a factor, one channel, one head, one token, one row of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Array


def scaled(factor: float | Callable[[Geometry], float]) -> Formula:
    """Multiply the stage by ``factor``."""

    def wrong(scene: Scene) -> Array:
        value = factor(scene.geometry) if callable(factor) else factor
        return np.asarray(scene.right() * scene.right().dtype.type(value))

    return wrong


def one_channel(factor: float) -> Formula:
    """Multiply one channel, an ordinary one, by ``factor``."""

    def wrong(scene: Scene) -> Array:
        right = scene.right().copy()
        sizes = np.abs(right).reshape(-1, right.shape[-1]).max(axis=0)
        ordinary = np.flatnonzero(sizes >= np.median(sizes))
        right[..., ordinary[scene.pick(len(ordinary))]] *= factor
        return right

    return wrong


def one_head(factor: float) -> Formula:
    """Multiply one head by ``factor``."""

    def wrong(scene: Scene) -> Array:
        right = scene.right().copy()
        # Of latent attention's q|k|v, whose heads have two widths, some channels of one or two heads.
        size = scene.geometry.value_dim if scene.name == "attention" else scene.geometry.head_dim
        if right.shape[-1] % size:
            size = math.gcd(size, right.shape[-1])
        heads = right if right.ndim == 3 else right.reshape(len(right), -1, size)
        if right.ndim == 3:
            heads[scene.pick(len(heads))] *= factor
        else:
            heads[:, scene.pick(heads.shape[1])] *= factor
        return right

    return wrong


def one_token(scene: Scene) -> Array:
    """Give one token, not the first, what the token before it should have."""
    right = scene.right().copy()
    token = 1 + scene.pick(scene.tokens - 1)
    axis = right.ndim - 2
    before = np.take(right, token - 1, axis=axis)
    if axis == 0:
        right[token] = before
    else:
        right[:, token] = before
    return right


def stale_last_token(scene: Scene) -> Array:
    """Give the last token what the token before it left in a cache."""
    right = scene.right().copy()
    right[-1] = right[-2]
    return right


def saturated(share: float) -> Formula:
    """Clip at ``share`` of the largest value, as a format that is too narrow does."""

    def wrong(scene: Scene) -> Array:
        right = scene.right()
        limit = share * np.max(np.abs(right))
        return np.clip(right, -limit, limit)

    return wrong


def coarse(bits: int) -> Formula:
    """Keep the stage with only ``bits`` bits of precision, in a format narrower than the declared one."""

    def wrong(scene: Scene) -> Array:
        right = scene.right()
        mantissa, exponent = np.frexp(right)
        return np.asarray(np.ldexp(np.rint(mantissa * 2.0**bits) / 2.0**bits, exponent).astype(right.dtype))

    return wrong


def from_input(name: str) -> Formula:
    """Hand on the input ``name`` unchanged: the operation is skipped."""

    def wrong(scene: Scene) -> Array:
        return np.array(scene.inputs[name])

    return wrong


def of_neighbour(scene: Scene) -> Array:
    """Use the weights of a neighbouring layer."""
    return scene.at(scene.neighbour)
