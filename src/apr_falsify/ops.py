"""Each stage of the forward pass as a pure NumPy function of earlier stages and the weights.

The functions compute in the number format of their inputs: f64 inputs give the f64 reference, which is
what a replay uses. Shapes follow ``stages.py``; S tokens, H query heads, K kv heads, D head_dim, E hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import StageError
from apr_falsify.geometry import Geometry
from apr_falsify.rope import Rope
from apr_falsify.stages import LAYER_INPUT, STAGES, Scope
from apr_falsify.tensors import Tensor
from apr_falsify.weights import Weights

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


def rope_frequencies(rope: Rope, head_dim: int) -> tuple[npt.NDArray[np.float64], float]:
    """Return the angle per position of each rotary pair, [D/2], and the factor on cos and sin.

    Su et al. 2021 for the plain rule; ``linear``: position interpolation (Chen et al. 2023); ``llama3``:
    the wavelength bands of the Llama 3.1 release; ``yarn``: Peng et al. 2023, with its attention factor.
    """
    plain = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return _ROPE_RULES[rope.kind](plain, rope, head_dim)


_Frequencies = npt.NDArray[np.float64]


def _rope_default(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain, 1.0


def _rope_divided(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain / np.asarray(rope.divisors), 1.0


def _rope_linear(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain / rope.parameters["factor"], 1.0


def _rope_llama3(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    """Slow pairs are divided by the factor, fast ones kept, those between blended by their wavelength."""
    p = rope.parameters
    context, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
    turns = context * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (keep + (1 - keep) / p["factor"]), 1.0


def _rope_yarn(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    """Pairs that turn often within the trained context are kept, slow ones interpolated, a ramp between."""
    p = rope.parameters
    context = p["original_max_position_embeddings"]

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(p.get("beta_fast") or 32.0), pair_that_turns(p.get("beta_slow") or 1.0)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001  # the published rule's way around a division by zero
    interpolate = np.clip((np.arange(head_dim // 2) - low) / span, 0.0, 1.0)
    return plain * (interpolate / p["factor"] + 1 - interpolate), _yarn_attention_factor(p)


def _yarn_attention_factor(p: Mapping[str, float]) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if p["factor"] <= 1 else 0.1 * weight * math.log(p["factor"]) + 1.0

    if p.get("attention_factor") is not None:
        return p["attention_factor"]
    if p.get("mscale") and p.get("mscale_all_dim"):
        return magnitude(p["mscale"]) / magnitude(p["mscale_all_dim"])
    return magnitude(1.0)


_ROPE_RULES: Mapping[str, Callable[[_Frequencies, Rope, int], tuple[_Frequencies, float]]] = {
    "default": _rope_default,
    "divided": _rope_divided,
    "linear": _rope_linear,
    "llama3": _rope_llama3,
    "yarn": _rope_yarn,
}


def rotate(x: Array, rope: Rope, head_dim: int, first_position: int = 0) -> Array:
    """Apply RoPE to ``x`` [S, heads * D], rotary pairs half-split.

    Token s stands at position ``first_position`` + s.
    """
    frequencies, factor = rope_frequencies(rope, head_dim)
    angles = np.outer(np.arange(first_position, first_position + len(x), dtype=np.float64), frequencies)
    cos, sin = (np.asarray(f(angles) * factor, dtype=x.dtype)[:, None, :] for f in (np.cos, np.sin))
    heads = x.reshape(len(x), -1, head_dim)
    first, second = heads[..., : head_dim // 2], heads[..., head_dim // 2 :]
    turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.reshape(x.shape)


def attention_scores(q: Array, k: Array, geometry: Geometry) -> Array:
    """Return q.k / sqrt(D) before the mask: [H, S, S] from [S, H*D] and [S, K*D]."""
    scale = q.dtype.type(1 / math.sqrt(geometry.head_dim))
    queries, keys = _heads(q, geometry.head_dim), _heads(k, geometry.head_dim)
    return np.asarray(queries @ _repeat_kv(keys, geometry).swapaxes(-1, -2) * scale)


def attention_softmax(scores: Array, window: int | None) -> Array:
    """Return softmax over the keys that each token may see: [H, S, S], zero elsewhere.

    Token i sees j <= i, and with a sliding window only the last ``window`` of those.
    """
    visible = visible_keys(scores.shape[-1], window)
    masked = np.where(visible, scores, -np.inf)
    shifted = masked - np.max(masked, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / np.sum(weights, axis=-1, keepdims=True))


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


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": silu}
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


def _norm(x: Array, role: str, site: Site) -> Array:
    return rms_norm(x, site.vector(role), site.geometry.norm_eps)


Inputs = Mapping[str, Array]
"""Stage name (or ``layer_input``) -> its values in canonical shape."""


def _embedding(inputs: Inputs, site: Site) -> Array:
    return site.embed()


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
    return rotate(x, geometry.rope, geometry.head_dim)


def _columns(role: str, geometry: Geometry) -> tuple[int, int]:
    q, kv = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    return {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[role]


def _attn_softmax(inputs: Inputs, site: Site) -> Array:
    assert site.layer is not None
    return attention_softmax(inputs["attn_scores"], site.geometry.windows[site.layer])


def _activation(inputs: Inputs, site: Site) -> Array:
    return ACTIVATIONS[site.geometry.activation](inputs["ffn_gate"])


FORMULAS: Mapping[str, Callable[[Inputs, Site], Array]] = {
    "embedding": _embedding,
    "attn_norm": lambda inputs, site: _norm(inputs[LAYER_INPUT], "attn_norm", site),
    "qkv_matmul": _qkv_matmul,
    "qkv_bias": _qkv_bias,
    "q_post_rope": lambda inputs, site: _rotated(inputs, site, "q"),
    "k_post_rope": lambda inputs, site: _rotated(inputs, site, "k"),
    "attn_scores": lambda inputs, site: attention_scores(
        inputs["q_post_rope"], inputs["k_post_rope"], site.geometry
    ),
    "attn_softmax": _attn_softmax,
    "attention": lambda inputs, site: attention(inputs["attn_softmax"], inputs["qkv_bias"], site.geometry),
    "attn_out": lambda inputs, site: site.project(inputs["attention"], "o", site.geometry.output_bias),
    "post_attn_residual": lambda inputs, site: inputs[LAYER_INPUT] + inputs["attn_out"],
    "ffn_norm": lambda inputs, site: _norm(inputs["post_attn_residual"], "ffn_norm", site),
    "ffn_gate": lambda inputs, site: site.project(inputs["ffn_norm"], "gate", site.geometry.mlp_bias),
    "ffn_up": lambda inputs, site: site.project(inputs["ffn_norm"], "up", site.geometry.mlp_bias),
    "ffn_silu": _activation,
    "ffn_swigl": lambda inputs, site: inputs["ffn_silu"] * inputs["ffn_up"],
    "ffn_out": lambda inputs, site: site.project(inputs["ffn_swigl"], "down", site.geometry.mlp_bias),
    "post_ffn_residual": lambda inputs, site: inputs["post_attn_residual"] + inputs["ffn_out"],
    "final_norm": lambda inputs, site: _norm(inputs["post_ffn_residual"], "final_norm", site),
    "lm_head": lambda inputs, site: site.project(inputs["final_norm"][..., -1, :], "lm_head"),
}
"""Stage -> its formula. A stage without a row has none yet (the mixture-of-experts stages)."""


def stages_of(geometry: Geometry) -> tuple[str, ...]:
    """Return the stages that a model of this geometry has, in forward order.

    A bias-free model has no ``qkv_bias``; only mixture-of-experts families have the ``moe_`` stages.
    """
    absent = set() if geometry.qkv_bias else {"qkv_bias"}
    return tuple(name for name in STAGES if name in FORMULAS and name not in absent)


def inputs_of(name: str, geometry: Geometry, layer: int | None) -> dict[str, tuple[int | None, str]]:
    """Return what stage ``name`` is computed from: input name -> the (layer, stage) that supplies it.

    A stage that the model does not have is stood in for by what it would have been computed from.
    """
    present = stages_of(geometry)
    if name not in present:
        raise StageError(f"a {geometry.row.title} model of this geometry has no stage {name}")
    sources: dict[str, tuple[int | None, str]] = {}
    for source in STAGES[name].inputs:
        if source == LAYER_INPUT:
            assert layer is not None
            sources[source] = (0, "embedding") if layer == 0 else (layer - 1, "post_ffn_residual")
        elif STAGES[name].scope is Scope.MODEL and STAGES[source].per_layer:
            sources[source] = (geometry.layers - 1, source)
        else:
            sources[source] = (layer, source if source in present else STAGES[source].inputs[0])
    return sources


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
