"""A short causal convolution over the tokens, each channel by itself, with or without an activation after it.

``y[t, c] = act(sum over j of w[c, j] x[t - K + 1 + j, c] + b[c])``, zero before the first token
(Gu & Dao 2023; Liquid AI 2025). Of padding nothing enters.
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


def _before_activation(node: Node, x: Array, site: Site | NoisySite) -> Array:
    made = convolved(without_padding(x, site.passes), kernel_of(site), bias_of(node, site))
    return made[len(made) - site.passes.rows :] if len(made) > site.passes.rows else made


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    made = _before_activation(node, only(inputs), site)
    return FUNCTIONS[node["activation"]](made) if node["activation"] else made


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, kernel = only(ins), f64(kernel_of(site))
    x, rows = without_padding(known.value, site.passes), len(y)
    made = f64(_before_activation(node, x, site))
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
