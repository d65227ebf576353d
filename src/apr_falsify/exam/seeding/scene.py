"""Where a wrong formula stands: one stage at one place, and how the host rightly computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from apr_falsify.model.passes import Passes
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.heads import parts
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.operators.site import Site


class SeededPlace(Site, Protocol):
    """What a wrong formula asks of the host: the place, and how the host computes a stage at one like it."""

    def run(self, name: str, inputs: Inputs) -> Array:
        """Compute a stage here in the host's arithmetic."""

    def moved(
        self,
        *,
        layer: int | None = None,
        tokens: tuple[int, ...] | None = None,
        geometry: Geometry | None = None,
        passes: Passes | None = None,
    ) -> SeededPlace:
        """Return the same place in another layer, with other tokens, of another geometry, or other passes."""

    def holding(self, rules: Mapping[Operation, Rule]) -> SeededPlace:
        """Return the same place, where operands are held in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A stage about to be computed.

    Attributes:
        name: the stage.
        inputs: what it is computed from.
        site: where.
        seed: chooses channels, heads, tokens and rows.
        batch: what attention reads of another row of the batch, of the same tokens as this one's inputs.

    """

    name: str
    inputs: Inputs
    site: SeededPlace
    seed: int
    batch: Mapping[Key, Array] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.site.geometry

    @property
    def rope(self) -> Rope:
        """The rotary embedding of the layer."""
        return self.geometry.rope_at(self.site.layer)

    @property
    def layer(self) -> int:
        """The layer; a whole-model stage has none and may not ask."""
        assert self.site.layer is not None
        return self.site.layer

    @property
    def tokens(self) -> int:
        """How many tokens run."""
        return len(self.site.tokens)

    @property
    def passes(self) -> Passes:
        """The passes so far; the last of them is computed."""
        return self.site.passes

    def right(self) -> Array:
        """Return what the stage should be."""
        return self.site.run(self.name, self.inputs)

    def fed(self, **inputs: Array) -> Array:
        """Return the stage computed from other ``inputs``."""
        return self.site.run(self.name, {**self.inputs, **inputs})

    def in_geometry(self, geometry: Geometry) -> Array:
        """Return the stage computed as in a model of ``geometry``."""
        return self.site.moved(geometry=geometry).run(self.name, self.inputs)

    def at(self, layer: int) -> Array:
        """Return the stage computed with the weights of another ``layer``."""
        return self.site.moved(layer=layer).run(self.name, self.inputs)

    @property
    def neighbour(self) -> int:
        """The number of a neighbouring layer."""
        return self.layer + 1 if self.layer + 1 < self.geometry.layers else self.layer - 1

    def pick(self, count: int) -> int:
        """Return one of ``count``, chosen by the seed."""
        return int(np.random.default_rng(self.seed).integers(count))

    def columns(self, role: str) -> slice:
        """Return where q, k or v stand in ``qkv_matmul`` and ``qkv_bias``."""
        return parts(self.geometry)[role]

    def re_rope(self, **changes: object) -> Array:
        """Return the stage with other constants of the rotary embedding."""
        if self.rope.kind == "none":
            return self.right()  # a layer that is not rotated
        rope = replace(self.rope, **changes)  # type: ignore[arg-type]  # fields by name, as the table gives them
        local = None if self.geometry.local_rope is None else rope
        return self.in_geometry(replace(self.geometry, rope=rope, local_rope=local))


Formula = Callable[[Scene], Array]
"""Computes a stage wrongly."""
