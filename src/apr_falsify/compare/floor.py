"""How large the rounding of a stage's own sums is: the unit in which a residual is judged.

For each element: the root mean square of the error that a *plain sequential f32 sum* brings, the
least exact order a correct runtime uses. With t the n terms of a sum, s_k its partial sums and u the unit
roundoff, rounding errors are independent and uniform (Higham, Accuracy and Stability, ch. 4; Higham & Mary
2019), so their variance is u^2 / 3 * sum(s_k^2). For terms of random sign sum(s_k^2) = n / 2 * sum(t^2);
for terms of one sign it is n / 3 * y^2. Both are taken. Few-term operations count each rounding once.

A stage whose inputs were themselves computed (because they were not captured) inherits their sigma,
to first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.geometry import Geometry
from apr_falsify.ops import rope_frequencies

F64 = npt.NDArray[np.float64]

UNIT = 2.0**-24
"""The unit roundoff of f32, in which sums are done."""

TINY = 2.0**-126
"""The smallest normal f32: below it a runtime may flush to zero."""

FEW = 4.0
"""Roundings of a library function (exp, sqrt, division) and of the operations around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An input of a stage.

    Attributes:
        value: its values, canonical shape.
        sigma: the rounding they carry because they were computed here, ``None`` if captured.

    """

    value: F64
    sigma: F64 | None = None


class NoisySite(Protocol):
    """What the table asks of the place of a replay."""

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""

    @property
    def layer(self) -> int | None:
        """The layer."""

    @property
    def noise(self) -> list[F64]:
        """Per projection of the stage: the variance of its sums, in squared unit roundoffs."""


Ins = Mapping[str, Known]


def rounding(name: str, inputs: Ins, value: F64, site: NoisySite, store: float) -> F64:
    """Return the sigma of stage ``name``: canonical shape, in the stage's own unit.

    Args:
        name: the stage.
        inputs: its inputs.
        value: the replayed stage.
        site: the place of the replay, after the replay.
        store: unit roundoff of the format in which the runtime keeps what it computes.

    """
    variance = SIGMAS[name](inputs, value, site, store)
    sigma: F64 = np.sqrt(variance + smallest_rounding(store) ** 2) + TINY
    return sigma


_SMALLEST_STEPS: Mapping[float, float] = {2.0**-11: 2.0**-24}
"""Unit roundoff of a format -> the step between its smallest numbers, where that matters: f16 has 5 bits
of exponent, and below 2**-14 its steps no longer shrink; f32 and bf16 reach down to 2**-126."""


def smallest_rounding(store: float) -> float:
    """Return the sigma of one rounding to the smallest numbers of a format: step / sqrt(12)."""
    return _SMALLEST_STEPS.get(store, 0.0) / math.sqrt(12)


def _sq(x: Any) -> F64:
    squared: F64 = np.square(np.abs(x))
    return squared


def _stored(magnitude: F64, store: float, times: float = 1.0) -> F64:
    """Return the variance of ``times`` roundings of ``magnitude`` to a format of unit roundoff ``store``."""
    return _sq(magnitude) * (times * store * store / 3)


def _var(known: Known) -> F64 | float:
    return 0.0 if known.sigma is None else _sq(known.sigma)


def _embedding(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return _stored(y, store, 2)


def norm_variance(y: F64, width: int, store: float) -> F64:
    """Return the variance of a norm over ``width`` values: its sum of squares, and its own roundings."""
    relative = UNIT * (math.sqrt(width) / 6 + FEW)
    return _sq(y * relative) + _stored(y, store, 2)


def _norm(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    (known,) = ins.values()
    own = norm_variance(y, y.shape[-1], store)
    if known.sigma is None:
        return own
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(known.value != 0, np.abs(y / known.value), 0.0)
    return np.asarray(own + _sq(slope * known.sigma))


def _projection(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    noise = np.concatenate(site.noise, axis=-1)
    return np.asarray(noise * UNIT**2 + _stored(y, max(store, UNIT), 2))


def _qkv_bias(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known = ins["qkv_matmul"]
    return np.asarray(_var(known) + _stored(y, max(store, UNIT), 2) + _stored(known.value, store))


def _rope(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count the rounding of cos, sin and products, and that of the angle, which grows with position."""
    geometry = site.geometry
    frequencies, _ = rope_frequencies(geometry.rope, geometry.head_dim)
    positions = np.arange(len(y), dtype=np.float64)[:, None]
    exponents = np.linspace(0, 1, len(frequencies), endpoint=False)
    angle_error = positions * frequencies * (2 + math.log(max(geometry.rope.theta, 2.0)) * exponents)
    pairs = y.reshape(len(y), -1, 2, geometry.head_dim // 2)
    radius = np.sqrt(np.sum(_sq(pairs), axis=2, keepdims=True))
    relative = _sq(UNIT * (angle_error[:, None, None, :] + 2)) + 2 * max(store, UNIT) ** 2
    variance = np.broadcast_to(_sq(radius) * relative, pairs.shape)
    known = ins["qkv_bias"]
    if known.sigma is not None:
        variance = variance + np.max(_sq(known.sigma), axis=-1)[:, None, None, None]
    return variance.reshape(y.shape)


def _rope_after_norm(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    own = _rope(ins, y, site, store)
    if not site.geometry.row.qk_norm:
        return own
    heads = y.reshape(len(y), -1, site.geometry.head_dim)
    radius = np.sqrt(np.mean(_sq(heads), axis=-1, keepdims=True)) + np.abs(heads)
    return np.asarray(own + norm_variance(radius, site.geometry.head_dim, store).reshape(y.shape))


def _scores(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry = site.geometry
    q, k = (_heads(ins[name].value, geometry.head_dim) for name in ("q_post_rope", "k_post_rope"))
    k = np.repeat(k, geometry.heads // geometry.kv_heads, axis=0)
    terms = _sq(q) @ _sq(k).swapaxes(-1, -2) / geometry.head_dim
    own = sum_variance(terms, y, geometry.head_dim) + _stored(y, max(store, UNIT), 2)
    carried = [
        _carried(ins, "q_post_rope", geometry, lambda s: s @ _sq(k).swapaxes(-1, -2)),
        _carried(
            ins,
            "k_post_rope",
            geometry,
            lambda s: _sq(q) @ np.repeat(s, geometry.heads // geometry.kv_heads, axis=0).swapaxes(-1, -2),
        ),
    ]
    return np.asarray(own + sum(carried))


def _carried(ins: Ins, name: str, geometry: Geometry, through: Callable[[F64], F64]) -> F64 | float:
    sigma = ins[name].sigma
    return 0.0 if sigma is None else through(_sq(_heads(sigma, geometry.head_dim))) / geometry.head_dim


def sum_variance(squares: F64, y: F64, terms: int) -> F64:
    """Return the variance of a plain f32 sum of ``terms`` terms, given the sum of their squares."""
    return (squares * (terms / 6) + _sq(y) * (terms / 9)) * UNIT**2


def _heads(x: F64, head_dim: int) -> F64:
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _softmax(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count exp of a rounded difference (its error grows with the difference) and the sum over the keys."""
    known = ins["attn_scores"]
    visible = np.where(y > 0, known.value, -np.inf)
    top = np.max(visible, axis=-1, keepdims=True)
    depth = np.where(y > 0, top - known.value, 0.0)
    relative = UNIT * (np.nan_to_num(depth) + math.sqrt(y.shape[-1]) / 3 + FEW)
    own = _sq(y * relative) + _stored(y, store)
    if known.sigma is None:
        return np.asarray(own)
    spread = np.sum(_sq(y * known.sigma), axis=-1, keepdims=True)
    return np.asarray(own + _sq(y) * (_sq(known.sigma) + spread))


def _attention(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry = site.geometry
    weights = ins["attn_softmax"]
    v = ins["qkv_bias"].value[:, -geometry.kv_heads * geometry.head_dim :]
    values = np.repeat(_heads(v, geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0)
    squares = _flat(_sq(weights.value) @ _sq(values))
    variance = sum_variance(squares, y, weights.value.shape[-1]) + _stored(y, max(store, UNIT))
    if weights.sigma is not None:
        variance = variance + _flat(_sq(weights.sigma) @ _sq(values))
    if (sigma := ins["qkv_bias"].sigma) is not None:
        own = np.repeat(
            _heads(sigma[:, -v.shape[1] :], geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0
        )
        variance = variance + _flat(_sq(weights.value) @ _sq(own))
    return np.asarray(variance)


def _flat(heads: F64) -> F64:
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


def _residual(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    carried = sum(_var(known) for known in ins.values())
    return np.asarray(carried + _stored(y, max(store, UNIT)))


def _activation(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count exp(-x): its relative error grows with x, and matters where the sigmoid is far from 1."""
    (known,) = ins.values()
    own = _sq(y * UNIT * (np.abs(known.value) + FEW)) + _stored(y, store)
    return np.asarray(own + 1.21 * _var(known))  # 1.1 bounds the slope of silu and gelu


def _product(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    left, right = ins["ffn_silu"], ins["ffn_up"]
    carried = _sq(right.value) * _var(left) + _sq(left.value) * _var(right)
    return np.asarray(carried + _stored(y, max(store, UNIT)))


SIGMAS: Mapping[str, Callable[[Ins, F64, NoisySite, float], F64]] = {
    "embedding": _embedding,
    "attn_norm": _norm,
    "qkv_matmul": _projection,
    "qkv_bias": _qkv_bias,
    "q_post_rope": _rope_after_norm,
    "k_post_rope": _rope_after_norm,
    "attn_scores": _scores,
    "attn_softmax": _softmax,
    "attention": _attention,
    "attn_out": _projection,
    "post_attn_residual": _residual,
    "ffn_norm": _norm,
    "ffn_gate": _projection,
    "ffn_up": _projection,
    "ffn_silu": _activation,
    "ffn_swigl": _product,
    "ffn_out": _projection,
    "post_ffn_residual": _residual,
    "final_norm": _norm,
    "lm_head": _projection,
}
"""Stage -> the variance of its rounding."""
