"""Rotary position embedding: the frequency of each pair, and the rotation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.passes import Passes
from apr_falsify.model.rope import Rope

Array = npt.NDArray[np.floating[Any]]


def rope_frequencies(rope: Rope, head_dim: int, tokens: int = 0) -> tuple[npt.NDArray[np.float64], float]:
    """Return the angle per position of each rotary pair, [R/2], and the factor on cos and sin.

    Su et al. 2021 for the plain rule; ``linear``: position interpolation (Chen et al. 2023); ``llama3``:
    the wavelength bands of the Llama 3.1 release; ``yarn``: Peng et al. 2023, with its attention factor;
    ``longrope``: Ding et al. 2024, one set of divisors within the original context and one beyond.

    Args:
        rope: the rotary embedding; it may turn only the first R = ``rope.width(head_dim)`` channels.
        head_dim: D.
        tokens: how long the run is.

    """
    width = rope.width(head_dim)
    plain = rope.theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    if rope.kind == "longrope" and tokens > rope.parameters["original_max_position_embeddings"]:
        rope = replace(rope, divisors=rope.long_divisors)
    return _ROPE_RULES[rope.kind](plain, rope, width)


_Frequencies = npt.NDArray[np.float64]


def _rope_default(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain, 1.0


def _rope_divided(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain / np.asarray(rope.divisors), 1.0


def _rope_none(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return np.zeros_like(plain), 1.0


def _rope_longrope(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    """Each pair is slowed by a divisor of its own; sqrt(1 + ln s / ln context) makes up for s times it."""
    p = rope.parameters
    factor = p.get("attention_factor")
    if factor is None:
        context = p["original_max_position_embeddings"]
        factor = 1.0 if p["factor"] <= 1 else math.sqrt(1 + math.log(p["factor"]) / math.log(context))
    return plain / np.asarray(rope.divisors), factor


def _rope_linear(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    return plain / rope.parameters["factor"], 1.0


def _rope_llama3(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    """Slow pairs are divided by the factor, fast ones stay, those between are blended by their wavelength."""
    p = rope.parameters
    context, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
    turns = context * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (keep + (1 - keep) / p["factor"]), 1.0


def _rope_yarn(plain: _Frequencies, rope: Rope, head_dim: int) -> tuple[_Frequencies, float]:
    """Pairs that turn often within the trained context stay, slow ones are interpolated, a ramp between."""
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
    "longrope": _rope_longrope,
    "none": _rope_none,
    "yarn": _rope_yarn,
}


def rotate(x: Array, rope: Rope, head_dim: int, passes: Passes | None = None, start: int = 0) -> Array:
    """Apply RoPE to ``x`` [S, heads * D], rotary pairs half-split over the channels that are rotated.

    Token s stands where ``passes`` says, at s where none are given; of fewer rows these are the last tokens'.
    Those channels begin at ``start`` of each head.
    """
    angles, factors = rope_angles(rope, head_dim, passes or Passes.whole(len(x)), len(x))
    cos, sin = (np.asarray(f(angles) * factors, dtype=x.dtype)[:, None, :] for f in (np.cos, np.sin))
    heads, half = x.reshape(len(x), -1, head_dim), angles.shape[1]
    before, first, second, after = np.split(heads, [start, start + half, start + 2 * half], axis=-1)
    turned = (before, first * cos - second * sin, second * cos + first * sin, after)
    return np.concatenate(turned, axis=-1).reshape(x.shape)


def rope_angles(rope: Rope, head_dim: int, passes: Passes, rows: int) -> tuple[_Frequencies, _Frequencies]:
    """Return the angle of each pair of the last ``rows`` tokens, [rows, R/2], and what cos and sin are times.

    A rule that knows long runs goes by the farthest position of each pass, as transformers does.
    """
    at = passes.at[passes.tokens - rows :]
    angles, factors = [], []
    for span in passes.spans(rows):
        frequencies, factor = rope_frequencies(rope, head_dim, farthest(at[span]))
        angles.append(np.outer(at[span], frequencies))
        factors.append(np.full((len(at[span]), 1), factor))
    if not angles:
        return np.zeros((0, rope.width(head_dim) // 2)), np.ones((0, 1))
    return np.concatenate(angles), np.concatenate(factors)


def farthest(positions: _Frequencies) -> int:
    """Return how long a run is whose tokens stand at ``positions``."""
    return int(np.max(positions, initial=-1)) + 1
