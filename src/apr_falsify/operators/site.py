"""Where a node is computed: weights, layer, tokens; and a product with weights, read block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry

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


def seen_positions(passes: Passes) -> list[int]:
    """Return the positions of the tokens that are seen."""
    return [int(position) for position in passes.at[passes.unseen :]]


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

    @property
    def passes(self) -> Passes:
        """How the run computed them."""

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, with its bias where ``biased``."""

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""

    def embed(self) -> Array:
        """Return the rows of the embedding table for the ``tokens`` that are seen: [S, E]."""

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
        in_passes: how the run computed its tokens; ``None``: at once.

    """

    weights: Weights
    layer: int | None
    tokens: tuple[int, ...]
    dtype: npt.DTypeLike = np.float64
    in_passes: Passes | None = None

    @property
    def passes(self) -> Passes:
        """How the run computed its tokens."""
        return self.in_passes or Passes.whole(len(self.tokens))

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
        return embedding(self.tokens[self.passes.unseen :], self.weights.tensor("embed"), self.dtype)

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions, in the format to compute in."""
        return embedding(seen_positions(self.passes), self.weights.tensor("positions"), self.dtype)
