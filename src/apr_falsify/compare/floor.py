"""How large the rounding of a stage's own sums is: the unit in which a residual is judged.

For each element: the root mean square of the error that a *plain sequential f32 sum* brings, the
least exact order a correct runtime uses. With t the n terms of a sum, s_k its partial sums and u the unit
roundoff, rounding errors are independent and uniform (Higham, Accuracy and Stability, ch. 4; Higham & Mary
2019), so their variance is u^2 / 3 * sum(s_k^2). For terms of random sign sum(s_k^2) = n / 2 * sum(t^2);
for terms of one sign it is n / 3 * y^2. Both are taken. Few-term operations count each rounding once. What
each operator counts is in its own file.

A stage whose inputs were themselves computed (because they were not captured) inherits their sigma,
to first order. What is lost at a format's smallest numbers (``operators.roundoff``) is counted where it
arises.
"""

from __future__ import annotations

import numpy as np

from apr_falsify.compare.site import ReplaySite
from apr_falsify.model.graph import Node
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.operator import Array
from apr_falsify.operators.roundoff import F64, TINY, Ins, Known, lost
from apr_falsify.operators.table import arguments, operator_of, products_in, span_from


def rounding(name: str, inputs: Ins, value: F64, site: ReplaySite, store: float) -> F64:
    """Return the sigma of stage ``name``: canonical shape, in the stage's own unit.

    Args:
        name: the stage.
        inputs: its inputs, by argument.
        value: the stage, as it was replayed or is guessed to be.
        site: the place of the replay; of a projection, after it was computed there.
        store: unit roundoff of the format in which the runtime keeps what it computes.

    """
    *inner, last = span_from(name, site.geometry, site.layer, inputs)
    made: dict[str, Known] = {}
    for node in inner:
        ins = arguments(node, inputs, made)
        plain = {key: each.value for key, each in ins.items()}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            values = operator_of(node).values(node, plain, site)
        y = np.asarray(values, dtype=np.float64)
        made[node.stage] = Known(value=y, sigma=sigma_of(node, ins, y, site, store))
    return sigma_of(last, arguments(last, inputs, made), value, site, store)


def sigma_of(node: Node, ins: Ins, value: F64, site: ReplaySite, store: float) -> F64:
    """Return the sigma of one node's ``value``, see :func:`rounding`."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is judged apart
        variance = np.array(operator_of(node).variance(node, ins, value, site, store), copy=None)
    variance += lost(store)
    sigma: F64 = np.sqrt(variance, out=variance)
    sigma += TINY
    return sigma


def projected_through(
    span: tuple[Node, ...], inputs: Ins, site: ReplaySite, store: float
) -> tuple[Array, F64]:
    """Return a span with products in it under each of the site's rules, [rules, ...], and its sigma."""
    if products_in(span) > 1:
        return _through_several(span, inputs, site, store)
    plain = {name: known.value for name, known in inputs.items()}
    values: dict[str, Array] = {}
    made: dict[str, Known] = {}
    multiplied = False
    for node in span:
        ins = arguments(node, inputs, made)
        site.begin(ins)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = operator_of(node).values(node, arguments(node, plain, values), site)
        multiplied = multiplied or operator_of(node).operation is Operation.PROJECTION
        y = np.asarray(found[0] if multiplied else found, dtype=np.float64)
        values[node.stage] = found
        made[node.stage] = Known(value=y, sigma=sigma_of(node, ins, y, site, store))
    last = made[span[-1].stage]
    assert last.sigma is not None
    return values[span[-1].stage], last.sigma


def _through_several(
    span: tuple[Node, ...], inputs: Ins, site: ReplaySite, store: float
) -> tuple[Array, F64]:
    """Return the same of a span in which one product is multiplied again: rule by rule."""
    rules, found = site.rules, []
    for rule in rules:
        site.rules = (rule,)
        found.append(_under_one_rule(span, inputs, site, store))
    site.rules = rules
    sigma = found[0].sigma
    assert sigma is not None
    return np.stack([known.value for known in found]), sigma


def _under_one_rule(span: tuple[Node, ...], inputs: Ins, site: ReplaySite, store: float) -> Known:
    made: dict[str, Known] = {}
    for node in span:
        ins = arguments(node, inputs, made)
        site.begin(ins)
        plain = {name: known.value for name, known in ins.items()}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = operator_of(node).values(node, plain, site)
        product = operator_of(node).operation is Operation.PROJECTION
        y = np.asarray(found[0] if product else found, dtype=np.float64)
        made[node.stage] = Known(value=y, sigma=sigma_of(node, ins, y, site, store))
    return made[span[-1].stage]
