"""Each stage of the forward pass as a pure NumPy function of earlier stages and the weights.

The functions compute in the number format of their inputs: f64 inputs give the f64 reference, which is
what a replay uses. Shapes follow ``stages.py``; S tokens, H query heads, K kv heads, D head_dim, E hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.families import Norm
from apr_falsify.model.mixture import as_experts, chosen_weights, mixture, routing, softmax
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT
from apr_falsify.operators.rotation import rotate

Array = npt.NDArray[np.floating[Any]]

_BLOCK_VALUES = 1 << 20
"""How many weights are decoded at once: some 8 MB as f64, which stays in the cache."""


def linear(x: Array, weight: Tensor, bias: Array | None = None) -> Array:
    """Return ``x @ weight.T (+ bias)``, decoding the weight block of rows by block of rows.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].

    """
    out, width = weight.shape
    step = max(1, _BLOCK_VALUES // width)
    result = np.empty((*x.shape[:-1], out), dtype=x.dtype)
    for start in range(0, out, step):
        stop = min(out, start + step)
        result[..., start:stop] = x @ weight.rows(start, stop).astype(x.dtype, copy=False).T
    if bias is not None:
        result += bias.astype(x.dtype, copy=False)
    return result


def embedding(tokens: Sequence[int], table: Tensor, dtype: npt.DTypeLike) -> Array:
    """Return the rows of ``table`` [V, E] for ``tokens``: [S, E]."""
    return np.stack([table.rows(token, token + 1)[0] for token in tokens]).astype(dtype, copy=False)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return ``x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
    return np.asarray(x * scale * weight.astype(x.dtype, copy=False))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis (Ba et al. 2016)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + x.dtype.type(eps))
    return np.asarray(centred * scale * weight.astype(x.dtype, copy=False) + bias.astype(x.dtype, copy=False))


def softcap(x: Array, cap: float | None) -> Array:
    """Return ``cap * tanh(x / cap)``, ``x`` itself without a cap (Bello et al. 2016; Gemma 2)."""
    if cap is None:
        return x
    limit = x.dtype.type(cap)
    return np.asarray(np.tanh(x / limit) * limit)


def attention_scores(q: Array, k: Array, geometry: Geometry, layer: int | None) -> Array:
    """Return scaled (and capped) q.k before the mask: [H, S, S] from [S, H*D] and [S, K*D]."""
    scale = q.dtype.type(geometry.attn_scale_at(layer))
    queries, keys = _heads(q, geometry.head_dim), _heads(k, geometry.head_dim)
    scores = np.asarray(queries @ _repeat_kv(keys, geometry).swapaxes(-1, -2))
    scores *= scale
    return softcap(scores, geometry.attn_softcap)


def attention_softmax(scores: Array, window: int | None) -> Array:
    """Return softmax over the keys that each token may see: [H, S, S], zero elsewhere.

    Token i sees j <= i, and with a sliding window only the last ``window`` of those.
    """
    visible = visible_keys(scores.shape[-1], window)
    weights = np.where(visible, scores, -np.inf)  # the one copy: at 512 tokens each is the largest stage
    weights -= np.max(weights, axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= np.sum(weights, axis=-1, keepdims=True)
    return weights


def visible_keys(tokens: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Return which key (column) each token (row) may see: [S, S]."""
    back = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    return (back >= 0) & (back < (tokens if window is None else window))


def attention(weights: Array, qkv: Array, geometry: Geometry) -> Array:
    """Return softmax.V before the output projection: [S, H*D] from [H, S, S] and q|k|v [S, (H+2K)*D]."""
    values = _heads(qkv[:, -geometry.kv_heads * geometry.head_dim :], geometry.head_dim)
    mixed = weights @ _repeat_kv(values, geometry)
    return mixed.swapaxes(0, 1).reshape(len(qkv), -1)


def _heads(x: Array, head_dim: int) -> Array:
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _repeat_kv(heads: Array, geometry: Geometry) -> Array:
    return np.repeat(heads, geometry.heads // geometry.kv_heads, axis=0)


def silu(x: Array) -> Array:
    """Return ``x * sigmoid(x)``."""
    # exp overflows to inf for very negative x, and x / inf is the right limit, 0.
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))


def gelu_tanh(x: Array) -> Array:
    """Return ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`` (Hendrycks & Gimpel 2016)."""
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return np.asarray(x / 2 * (1 + np.tanh(inner)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}
"""The feed-forward activations, by the name that config.json uses."""


class Site(Protocol):
    """What a formula asks of the place where its stage is computed."""

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""

    @property
    def layer(self) -> int | None:
        """The layer, ``None`` for a whole-model stage."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids of the run."""

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, with its bias where ``biased``."""

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""

    def embed(self) -> Array:
        """Return the rows of the embedding table for ``tokens``: [S, E]."""

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions: [S, E]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSite:
    """A place in a model's forward pass, computed with its weights as they are.

    Attributes:
        weights: the model's weights.
        layer: the layer, ``None`` for a whole-model stage.
        tokens: the token ids of the run.
        dtype: the number format to compute in.

    """

    weights: Weights
    layer: int | None
    tokens: tuple[int, ...]
    dtype: npt.DTypeLike = np.float64

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.weights.geometry

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, with its bias where ``biased``."""
        bias = self.vector(f"{role}_bias") if biased else None
        return linear(x, self.weights.tensor(role, self.layer), bias)

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``, in the format to compute in."""
        vector: Array = self.weights.vector(role, self.layer).astype(self.dtype, copy=False)
        return vector

    def embed(self) -> Array:
        """Return the rows of the embedding table for ``tokens``, in the format to compute in."""
        return embedding(self.tokens, self.weights.tensor("embed"), self.dtype)

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions, in the format to compute in."""
        return embedding(range(len(self.tokens)), self.weights.tensor("positions"), self.dtype)


def _norm(x: Array, role: str, site: Site) -> Array:
    geometry = site.geometry
    if geometry.row.norm is Norm.LAYER:
        return layer_norm(x, site.vector(role), site.vector(f"{role}_bias"), geometry.norm_eps)
    return rms_norm(x, site.vector(role), geometry.norm_eps)


def _post_normed(x: Array, role: str, site: Site) -> Array:
    return _norm(x, role, site) if site.geometry.row.post_norms else x


Inputs = Mapping[str, Array]
"""Stage name (or ``layer_input``) -> its values in canonical shape."""


def _embedding(inputs: Inputs, site: Site) -> Array:
    geometry, rows = site.geometry, site.embed()
    if geometry.embed_scale != 1.0:
        rows = rows * rows.dtype.type(geometry.embed_scale)
    return rows + site.positions() if geometry.positions else rows


def _qkv_matmul(inputs: Inputs, site: Site) -> Array:
    return np.concatenate([site.project(inputs["attn_norm"], role) for role in "qkv"], axis=-1)


def _qkv_bias(inputs: Inputs, site: Site) -> Array:
    return np.asarray(inputs["qkv_matmul"] + np.concatenate([site.vector(f"{role}_bias") for role in "qkv"]))


def _rotated(inputs: Inputs, site: Site, role: str) -> Array:
    geometry = site.geometry
    start, stop = _columns(role, geometry)
    x = inputs["qkv_bias"][:, start:stop]
    if geometry.row.qk_norm:
        heads = x.reshape(len(x), -1, geometry.head_dim)
        x = _norm(heads, f"{role}_norm", site).reshape(x.shape)
    return rotate(x, geometry.rope_at(site.layer), geometry.head_dim)


def _columns(role: str, geometry: Geometry) -> tuple[int, int]:
    q, kv = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    return {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[role]


def _attn_softmax(inputs: Inputs, site: Site) -> Array:
    assert site.layer is not None
    return attention_softmax(inputs["attn_scores"], site.geometry.windows[site.layer])


def _activation(inputs: Inputs, site: Site) -> Array:
    return ACTIVATIONS[site.geometry.activation](inputs["ffn_gate"])


def _attn_out(inputs: Inputs, site: Site) -> Array:
    return _post_normed(
        site.project(inputs["attention"], "o", site.geometry.output_bias), "attn_post_norm", site
    )


def _ffn_out(inputs: Inputs, site: Site) -> Array:
    x = inputs["ffn_swigl"]
    if site.geometry.is_mixture(site.layer):
        chosen, weights = routing(site.project(x, "router"), site.geometry)
        return mixture(x, chosen, weights, partial(_expert, site))
    return _post_normed(site.project(x, "down", site.geometry.mlp_bias), "ffn_post_norm", site)


def _lm_head(inputs: Inputs, site: Site) -> Array:
    logits = site.project(inputs["final_norm"][..., -1, :], "lm_head")
    return softcap(logits, site.geometry.final_softcap)


def _expert(site: Site, x: Array, expert: int) -> Array:
    gate, up = (site.project(x, f"{role}.{expert}") for role in ("expert_gate", "expert_up"))
    return site.project(ACTIVATIONS[site.geometry.activation](gate) * up, f"expert_down.{expert}")


def _moe_router_indices(inputs: Inputs, site: Site) -> Array:
    last = inputs["ffn_norm"][-1:]
    chosen, _ = routing(site.project(last, "router"), site.geometry)
    return np.asarray(chosen[0], dtype=last.dtype)


def _moe_router(inputs: Inputs, site: Site) -> Array:
    probabilities = softmax(site.project(inputs["ffn_norm"][-1:], "router"))
    chosen = as_experts(inputs["moe_router_indices"], site.geometry)
    return np.asarray(chosen_weights(probabilities, chosen[None], site.geometry)[0])


def _moe_ffn_out(inputs: Inputs, site: Site) -> Array:
    chosen, weights = as_experts(inputs["moe_router_indices"], site.geometry), inputs["moe_router"]
    last = mixture(inputs["ffn_norm"][-1:], chosen[None], weights[None], partial(_expert, site))
    return np.asarray(last[0])


FORMULAS: Mapping[str, Callable[[Inputs, Site], Array]] = {
    "embedding": _embedding,
    "attn_norm": lambda inputs, site: _norm(inputs[LAYER_INPUT], "attn_norm", site),
    "qkv_matmul": _qkv_matmul,
    "qkv_bias": _qkv_bias,
    "q_post_rope": lambda inputs, site: _rotated(inputs, site, "q"),
    "k_post_rope": lambda inputs, site: _rotated(inputs, site, "k"),
    "attn_scores": lambda inputs, site: attention_scores(
        inputs["q_post_rope"], inputs["k_post_rope"], site.geometry, site.layer
    ),
    "attn_softmax": _attn_softmax,
    "attention": lambda inputs, site: attention(inputs["attn_softmax"], inputs["qkv_bias"], site.geometry),
    "attn_out": _attn_out,
    "post_attn_residual": lambda inputs, site: inputs[LAYER_INPUT] + inputs["attn_out"],
    "ffn_norm": lambda inputs, site: _norm(inputs["post_attn_residual"], "ffn_norm", site),
    "ffn_gate": lambda inputs, site: site.project(inputs["ffn_norm"], "gate", site.geometry.mlp_bias),
    "ffn_up": lambda inputs, site: site.project(inputs["ffn_norm"], "up", site.geometry.mlp_bias),
    "ffn_silu": _activation,
    "ffn_swigl": lambda inputs, site: inputs["ffn_silu"] * inputs["ffn_up"],
    "ffn_out": _ffn_out,
    "post_ffn_residual": lambda inputs, site: inputs["post_attn_residual"] + inputs["ffn_out"],
    "final_norm": lambda inputs, site: _norm(inputs["post_ffn_residual"], "final_norm", site),
    "moe_router": _moe_router,
    "moe_ffn_out": _moe_ffn_out,
    "moe_router_indices": _moe_router_indices,
    "lm_head": _lm_head,
}
"""Stage -> its formula."""


def compute(name: str, inputs: Inputs, site: Site) -> Array:
    """Return stage ``name`` in its canonical shape, from inputs in theirs.

    Args:
        name: a stage that the model has.
        inputs: what :func:`inputs_of` names, all in ``site.dtype``.
        site: weights, layer, tokens and number format.

    """
    # Values that are not finite are data, and so is what they, or an overflow, lead to.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return FORMULAS[name](inputs, site)
