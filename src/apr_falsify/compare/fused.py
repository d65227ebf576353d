"""Attention replayed as one, where a runtime shows neither scores nor softmax: fused kernels.

Such a kernel (Dao et al. 2022; Rabe & Staats 2021) keeps scores, weights and sums in f32, whatever the format
of q, k and v, and multiplies V with weights that it rounds to that format. It goes through the keys in blocks
and divides by the sum of the weights at the end, so that *which* values it rounds depends on the block: what
the rounding costs is counted, and not repeated. An unfused one keeps every step in the run's format; both are
met in the wild (``torch``'s ``sdpa`` picks one), and the narrower one is tried first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import sigma_of
from apr_falsify.compare.operands import Operands
from apr_falsify.compare.site import ReplaySite
from apr_falsify.model.graph import Node
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.roundoff import UNIT, Ins, Known, lost, stored
from apr_falsify.operators.table import arguments, operator_of

F64 = npt.NDArray[np.float64]


def attended(
    span: tuple[Node, ...], inputs: Ins, site: ReplaySite, operands: Operands, store: float
) -> tuple[F64, list[F64]]:
    """Return the last stage of a span from scores to mix under each of the site's rules, [rules, ...].

    Args:
        span: its nodes.
        inputs: rotated q and k, and q|k|v, by argument.
        site: the place of the replay.
        operands: holds operands as a rule says.
        store: unit roundoff of the format in which the runtime keeps its stages.

    Returns:
        The values, and the rounding under each rule.

    """
    found = [_under(rule, span, inputs, site, operands, store) for rule in site.rules]
    return np.stack([values for values, _ in found]), [sigma for _, sigma in found]


def _under(
    rule: Rule, span: tuple[Node, ...], inputs: Ins, site: ReplaySite, operands: Operands, store: float
) -> tuple[F64, F64]:
    made: dict[str, Known] = {}
    known = _rounded_once_more(inputs, store) if rule.rounds_steps else inputs
    for node in span:
        ins = arguments(node, known, made)
        last = node is span[-1]
        made[node.stage] = step(node, ins, rule, site, operands, store if last or rule.rounds_steps else UNIT)
        if node.stage == "attn_softmax":
            made[node.stage] = rounded_weights(made[node.stage], store)
    found = made[span[-1].stage]
    assert found.sigma is not None
    return found.value, found.sigma


def step(node: Node, ins: Ins, rule: Rule, site: ReplaySite, operands: Operands, store: float) -> Known:
    """Return one step of attention under the part of ``rule`` that is of it, with its rounding."""
    operation = operator_of(node).operation
    part = rule.of(operation)
    plain: Mapping[str, F64] = {name: each.value for name, each in ins.items()}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = operator_of(node).values(node, operands.rounded(operation, dict(plain), part), site)
        y = np.asarray(values, dtype=np.float64)
        if operation is Operation.SCORES and part.block_sums:
            y = y + operands.block_sums(plain, part)[0]
        noise = operands.noise(operation, plain, part, y)
    return Known(value=y, sigma=np.hypot(sigma_of(node, ins, y, site, store), noise))


def rounded_weights(weights: Known, store: float) -> Known:
    """Return attention weights that are rounded before they are multiplied with V, where the run has 16 bits.

    They are rounded before they are divided by their sum, relative to the largest of their row.
    """
    if store <= UNIT or weights.sigma is None:
        return weights
    top = np.max(weights.value, axis=-1, keepdims=True)
    own = stored(weights.value, store) + lost(store, top)
    return Known(value=weights.value, sigma=np.sqrt(np.square(weights.sigma) + own))


def _rounded_once_more(inputs: Ins, store: float) -> dict[str, Known]:
    """Return the inputs with the rounding of q and k after each was multiplied with the root of the scale."""
    found = dict(inputs)
    for name in ("q_post_rope", "k_post_rope"):
        known = inputs[name]
        own = np.abs(known.value) * (store / math.sqrt(3))
        found[name] = Known(
            value=known.value, sigma=own if known.sigma is None else np.hypot(known.sigma, own)
        )
    return found
