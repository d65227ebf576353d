"""A short causal convolution over the tokens, each channel by itself, with or without an activation after it.

``y[t, c] = act(sum over j of w[c, j] x[t - K + 1 + j, c] + b[c])``, zero before the first token
(Gu & Dao 2023; Liquid AI 2025). Of padding nothing enters, but for what a projection with a bias in front of
it makes of nothing: transformers zeroes padding before that projection, and others after it.
"""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.attention import sum_variance
from apr_falsify.operators.choices import f64
from apr_falsify.operators.feedforward import FUNCTIONS, activated, text_of_activation
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, UNIT, Ins, Known, NoisySite, squared, stored
from apr_falsify.operators.site import Site


def kernel_of(site: Site | NoisySite) -> Array:
    """Return the convolution's weights, the last of a channel for the token itself: [C, K]."""
    weight = site.vector("conv")
    return weight.reshape(len(weight), -1)


def convolved(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Return ``x`` [S, C] convolved with ``kernel`` [C, K], zero before the first token."""
    width = kernel.shape[1]
    padded = np.concatenate((np.zeros((width - 1, x.shape[1]), dtype=x.dtype), x))
    total = np.zeros_like(x)
    for j in range(width):
        total += padded[j : j + len(x)] * kernel[:, j].astype(x.dtype, copy=False)
    return total if bias is None else np.asarray(total + bias.astype(x.dtype, copy=False))


def without_padding(x: Array, passes: Passes) -> Array:
    """Return ``x`` [S, C] with zeros for padding, which layers without attention leave out so."""
    held = passes.rows_held()[len(passes.rows_held()) - len(x) :]
    return x if held.all() else np.where(held[:, None], x, x.dtype.type(0))


def bias_of(node: Node, site: Site | NoisySite) -> Array | None:
    """Return the convolution's bias, ``None`` where it has none."""
    return site.vector("conv_bias") if "conv_bias" in node.roles else None


def entering(node: Node, x: Array, site: Site | NoisySite) -> Array:
    """Return ``x`` [S, C] with what enters of its padding: zeros, or the bias of the projection in front.

    Either is right. Where the run's own result is known, that which is nearer to it is taken; where it is
    not, the bias is taken if the rows of padding hold it.
    """
    zeroed, role = without_padding(x, site.passes), node.constants.get("bias_before")
    if zeroed is x or not role:
        return zeroed
    of_nothing = _projected_nothing(site.vector(role), x.shape[1]).astype(x.dtype, copy=False)
    padded = ~site.passes.rows_held()[-len(x) :, None]
    far = np.linalg.norm(np.where(padded, x - of_nothing, 0))
    held = bool(far <= _NEAR * np.linalg.norm(np.where(padded, of_nothing, 0)))
    biased = x if held else np.where(padded, of_nothing, x)
    captured: Array | None = getattr(site, "captured", None)
    if captured is None:
        return biased if held else zeroed
    off = [_distance(_result(node, each, site), captured, site.passes) for each in (zeroed, biased)]
    return biased if off[1] < off[0] else zeroed


_NEAR = 0.02
"""Rows that are nearer to the bias than this share of it are the bias, in whatever format they were kept."""


def _projected_nothing(bias: Array, channels: int) -> Array:
    """Return what enters of a token that is zero: the bias, or of three parts the first times the last."""
    if len(bias) == channels:
        return bias
    before, _, x = np.split(bias, 3)
    return np.asarray(before * x)


def _distance(made: Array, captured: Array, passes: Passes) -> float:
    rows = min(len(made), len(captured))
    held = passes.rows_held()[-rows:, None]
    return float(np.linalg.norm(np.where(held, np.nan_to_num(made[-rows:] - captured[-rows:]), 0)))


def _convolved(node: Node, x: Array, site: Site | NoisySite) -> Array:
    made = convolved(x, kernel_of(site), bias_of(node, site))
    return made[len(made) - site.passes.rows :] if len(made) > site.passes.rows else made


def _result(node: Node, x: Array, site: Site | NoisySite) -> Array:
    made = _convolved(node, x, site)
    return FUNCTIONS[node["activation"]](made) if node["activation"] else made


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    return _result(node, entering(node, only(inputs), site), site)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, kernel = only(ins), f64(kernel_of(site))
    x, rows = entering(node, known.value, site), len(y)
    made = f64(_convolved(node, x, site))
    squares = f64(convolved(squared(x), squared(kernel)))[-rows:]
    own = sum_variance(squares, made, kernel.shape[1] + 1)
    if known.sigma is not None:
        own = own + convolved(squared(known.sigma), squared(kernel))[-rows:]
    if not node["activation"]:
        return np.asarray(own + stored(y, max(store, UNIT), 2))
    before = Known(value=made, sigma=np.sqrt(own + stored(made, max(store, UNIT), 2)))
    return np.asarray(activated(before, y, node["activation"], store))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    x, bias = argument(node), " + conv_bias" if "conv_bias" in node.roles else ""
    made = text_of_activation(node["activation"], "made") if node["activation"] else "made"
    return (
        "kernel = conv_weight.reshape(len(conv_weight), -1)",
        "width = kernel.shape[1]",
        f"padded = np.concatenate([np.zeros((width - 1, {x}.shape[1])), {x}])",
        f"made = sum(padded[j : j + tokens] * kernel[:, j] for j in range(width)){bias}",
        f"{node.stage} = {made}",
    )


SHORT_CONV = Operator(
    name="short_conv", values=_values, variance=_variance, text=_text, over_tokens=True, kept=("conv_in",)
)
