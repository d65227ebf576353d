"""Products with weights, side by side where a node has several; a bias; and the addition of a bias alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.operator import Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, UNIT, Ins, NoisySite, squared, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def weights_of(node: Node) -> tuple[str, ...]:
    """Return the roles of a node's matrices, without those of its biases."""
    return tuple(role for role in node.roles if not role.endswith("_bias"))


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    x = only(inputs)
    products = [site.project(x, role, f"{role}_bias" in node.roles) for role in weights_of(node)]
    return products[0] if len(products) == 1 else np.concatenate(products, axis=-1)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return projected(np.concatenate(site.noise, axis=-1), y, store)


def projected(noise: F64, y: F64, store: float) -> F64:
    """Return the variance of a projection's result ``y``, given that of its sums in squared roundoffs."""
    return np.asarray(noise * UNIT**2 + stored(y, max(store, UNIT), 2))


def started_at(bias: Array, terms: int) -> F64:
    """Return what sums of ``terms`` terms cost, in squared roundoffs, that start at the bias.

    That is how ``addmm`` and every kernel work that fill the result with the bias first: each partial sum
    holds the bias. How many are rounded differs from kernel to kernel, one in a block of terms or each.
    """
    return squared(bias) * (terms / 3)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    roles, x = weights_of(node), argument(node)
    if len(roles) > 1:
        stacked = ", ".join(f"{role}_weight" for role in roles)
        return (f"{node.stage} = {x} @ np.concatenate([{stacked}]).T",)
    (role,) = roles
    bias = f" + {role}_bias" if f"{role}_bias" in node.roles else ""
    return (f"{node.stage} = {x} @ {role}_weight.T{bias}",)


def _biased(node: Node, inputs: Inputs, site: Site) -> Array:
    return np.asarray(only(inputs) + np.concatenate([site.vector(role) for role in node.roles]))


def _bias_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known = only(ins)
    added = stored(y, max(store, UNIT), 2) + stored(known.value, store)
    if known.sigma is None:  # the product was stored before the bias was added
        return np.asarray(added)
    return np.asarray(added + known.variance + started_at(y - known.value, site.geometry.hidden) * UNIT**2)


def _bias_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (f"{node.stage} = {argument(node)} + np.concatenate([{', '.join(node.roles)}])",)


LINEAR = Operator(
    name="linear", values=_values, variance=_variance, text=_text, operation=Operation.PROJECTION
)
BIAS = Operator(name="bias", values=_biased, variance=_bias_variance, text=_bias_text)
