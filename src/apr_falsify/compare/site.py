"""The place of a replay: weights, rules, and the rounding that its projections bring."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from apr_falsify.compare.products import product
from apr_falsify.formats.weights import Weights
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN, Rule
from apr_falsify.operators.linear import started_at
from apr_falsify.operators.roundoff import F64, UNIT, Array, Ins
from apr_falsify.operators.site import embedding, seen_positions


class WeightsNeeded(Exception):
    """A replay needs weights where there are none; becomes :class:`Missing`."""


class NotCaptured(Exception):
    """A replay must compose a stage that cannot be composed; becomes :class:`Missing`.

    Args:
        key: that stage.

    """

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.key = key


@dataclass(slots=True, kw_only=True)
class ReplaySite:
    """A place of the forward pass, replayed: an ``operators.site.Site`` that knows rules and rounding.

    Attributes:
        weights: the weights to replay with, ``None`` where there are none.
        geometry: the model's geometry.
        layer: the layer, ``None`` for a whole-model stage.
        tokens: the token ids of the run.
        rules: what becomes of a projection's operand; more than one gives [rules, ...] results.
        input_sigma: the rounding that the stage's input carries already.
        input_rows: the stage's input where it has one, of all tokens.
        noise: per projection of the node: the variance of its sums, in squared unit roundoffs.
        angle_errors: the rounding of the angles of a rotation that is not the model's, in unit roundoffs.
        in_passes: how the run computed its tokens; ``None``: at once.
        types: per projection: the number format of its weights.
        captured: the stage itself as the run has it, for what rounding leaves open; ``None`` where it has
            none.
        last_weights: a mixture's weights of the last token's experts as the run has them.

    """

    weights: Weights | None
    geometry: Geometry
    layer: int | None
    tokens: tuple[int, ...]
    rules: tuple[Rule, ...] = (PLAIN,)
    input_sigma: F64 | None = None
    input_rows: F64 | None = None
    noise: list[F64] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    angle_errors: F64 | None = None
    captured: F64 | None = None
    last_weights: F64 | None = None
    in_passes: Passes | None = None

    @property
    def passes(self) -> Passes:
        """How the run computed its tokens."""
        return self.in_passes or Passes.whole(len(self.tokens))

    def begin(self, inputs: Ins) -> None:
        """Begin a node that is computed from ``inputs``."""
        self.noise.clear()
        self.input_rows = next(iter(inputs.values())).value if len(inputs) == 1 else None
        self.input_sigma = next((known.sigma for known in inputs.values() if known.sigma is not None), None)

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` [..., in] through the projection in ``role``, once per rule: [rules, ..., out]."""
        tensor = self.known_weights.tensor(role, self.layer)
        values, noise = product(x, self.rules, self._carried(x), tensor, self._whole(x))
        if biased:
            bias = self.vector(f"{role}_bias")
            values += bias
            noise += started_at(bias, x.shape[-1])
        self.noise.append(noise)
        self.types.append(tensor.type)
        return values

    def _whole(self, x: Array) -> F64 | None:
        """Return the rows of all tokens where ``x`` is the last one alone: a head takes no other."""
        rows = self.input_rows
        return rows if rows is not None and x.ndim == 1 and rows.ndim == 2 else None

    def _carried(self, x: Array) -> F64 | None:
        """Return the rounding that ``x`` carries, in unit roundoffs: all of the input's, or its last row."""
        sigma = self.input_sigma
        if sigma is None:
            return None
        return (sigma if sigma.ndim == x.ndim else sigma[-1]) / UNIT

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""
        return self.known_weights.vector(role, self.layer).astype(np.float64)

    def embed(self) -> Array:
        """Return the rows of the embedding table for the ``tokens`` that are seen."""
        return embedding(self.tokens[self.passes.unseen :], self.known_weights.tensor("embed"), np.float64)

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions."""
        return embedding(seen_positions(self.passes), self.known_weights.tensor("positions"), np.float64)

    @property
    def known_weights(self) -> Weights:
        """The weights; raises :class:`WeightsNeeded` where there are none."""
        if self.weights is None:
            raise WeightsNeeded
        return self.weights
