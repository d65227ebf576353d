"""How the embedded runtime multiplies: what becomes of operands (``operand_rules.py``), how its sums run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.views import block_minima, has_block_minima
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics import quantise
from apr_falsify.numerics.arithmetic import FORMATS, Format, format_named
from apr_falsify.numerics.operand_rules import PLAIN, Operation, Rule, stated_rules
from apr_falsify.operators.attention import OPERANDS
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.operators.site import ModelSite, linear
from apr_falsify.operators.table import compute, operation_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What a run computes in.

    Attributes:
        store: the number format in which it keeps its stages.
        rules: operation -> what becomes of the operands; an operation without a row is plain.
        sequential: whether the sums of projections run over one term after the other, as the plainest
            loop does, and not as a matrix library orders them.

    """

    store: Format = field(default_factory=lambda: format_named("f32"))
    rules: Mapping[Operation, Rule] = field(default_factory=dict)
    sequential: bool = False

    def rule(self, operation: Operation) -> Rule:
        """Return what becomes of the operands of ``operation``."""
        return self.rules.get(operation, PLAIN)

    @property
    def name(self) -> str:
        """Its name: the format, and what is not plain."""
        return "; ".join([self.store.name, *(rule.name for rule in self.rules.values())])


def arithmetic_named(text: str) -> Arithmetic:
    """Read what :attr:`Arithmetic.name` gives, e.g. ``f32; q8_0 blocks of 32``.

    Raises:
        UsageError: a part that is neither a number format nor a rule of the table.

    """
    rules = stated_rules(text)
    formats = [part for part in (part.strip() for part in text.split(";")) if part in FORMATS]
    return Arithmetic(store=format_named(formats[0] if formats else "f32"), rules=rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSite:
    """A place in the embedded runtime's forward pass: an ``operators.site.Site`` in any arithmetic.

    Attributes:
        model: the place with its weights as they are.
        arithmetic: what it computes in.

    """

    model: ModelSite
    arithmetic: Arithmetic

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.model.geometry

    @property
    def layer(self) -> int | None:
        """The layer, ``None`` for a whole-model stage."""
        return self.model.layer

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids of the run."""
        return self.model.tokens

    @property
    def passes(self) -> Passes:
        """How the run computed its tokens."""
        return self.model.passes

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, with its bias where ``biased``."""
        tensor = self.model.weights.tensor(role, self.layer)
        rule = self.arithmetic.rule(Operation.PROJECTION)
        operand = rule.left(x).astype(x.dtype, copy=False)
        multiply = _sequential if self.arithmetic.sequential else linear
        result = multiply(operand, tensor)
        if rule.block_sums and has_block_minima(tensor):
            result = result + (quantise.q8_1_block_sums(x) @ block_minima(tensor).T).astype(x.dtype)
        return result + self.vector(f"{role}_bias") if biased else result

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""
        return self.model.vector(role)

    def embed(self) -> Array:
        """Return the rows of the embedding table for ``tokens``."""
        return self.model.embed()

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions."""
        return self.model.positions()

    def run(self, name: str, inputs: Inputs) -> Array:
        """Compute stage ``name`` here from ``inputs`` and round it to the arithmetic's format."""
        held = _operands(self, name, dict(inputs))
        return np.asarray(self.arithmetic.store.round(compute(name, held, self)))

    def moved(
        self,
        *,
        layer: int | None = None,
        tokens: tuple[int, ...] | None = None,
        geometry: Geometry | None = None,
    ) -> RuntimeSite:
        """Return the same place in another layer, with other tokens, or taken to be of another geometry."""
        place = self.model
        weights = place.weights if geometry is None else replace(place.weights, geometry=geometry)
        layer = place.layer if layer is None else layer
        return replace(
            self, model=replace(place, weights=weights, layer=layer, tokens=tokens or place.tokens)
        )


def _operands(site: RuntimeSite, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
    operation = operation_at(name, site.geometry, site.layer, inputs)
    rule = site.arithmetic.rule(operation)
    if rule is PLAIN or operation not in OPERANDS:
        return inputs
    left, right = OPERANDS[operation]
    a, b = inputs[left], inputs[right]
    dtype = a.dtype
    size = site.geometry.value_dim if operation is Operation.MIX else site.geometry.head_dim
    if rule.rotated and operation is Operation.SCORES:
        size = quantise.rotation_size(site.geometry.head_dim)
        a, b = (quantise.hadamard_rotated(x, size).astype(dtype) for x in (a, b))
    return {
        **inputs,
        left: rule.left(a).astype(dtype, copy=False),
        right: rule.held_right(b, site.geometry.kv_heads, size).astype(dtype, copy=False),
    }


def _sequential(x: Array, weight: Tensor) -> Array:
    """Return ``x @ weight.T``, each sum rounded after every term."""
    rows: npt.NDArray[np.floating] = weight.rows(0, weight.shape[0]).astype(x.dtype, copy=False)
    total = np.zeros((*x.shape[:-1], weight.shape[0]), dtype=x.dtype)
    for index, column in enumerate(np.ascontiguousarray(rows.T)):
        total += x[..., index, None] * column
    return total
