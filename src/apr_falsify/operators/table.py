"""The operators by name, and the spans of nodes that a stage is computed through.

A node that was not captured, and has no place in every runtime's list (``Stage.inner``), is computed through:
the stage that follows is then replayed from what comes before it, as one. So are the steps of :data:`FUSED`,
where a runtime shows none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from apr_falsify.errors import FamilyError, nearest
from apr_falsify.model.graph import Graph, Node
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES
from apr_falsify.model.wiring import node_of
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.attention import CACHED, MIX, SCORES, SOFTMAX
from apr_falsify.operators.decay import BETA, DECAY
from apr_falsify.operators.embed import EMBED
from apr_falsify.operators.feedforward import ACTIVATION, ADD, GATE
from apr_falsify.operators.gated_delta import GATED_DELTA
from apr_falsify.operators.gated_norm import GATE_THEN_NORM, GATED_NORM
from apr_falsify.operators.head import HEAD, LOGITS
from apr_falsify.operators.l2_norm import L2_NORM
from apr_falsify.operators.latent import LATENT_HEADS, SHARED_ROTARY
from apr_falsify.operators.linear import BIAS, LINEAR
from apr_falsify.operators.mixture import LAST_MIXTURE, MIXTURE
from apr_falsify.operators.norms import LAYER_NORM, RMS_NORM
from apr_falsify.operators.operator import Array, Inputs, Operator
from apr_falsify.operators.rotary import ROTARY
from apr_falsify.operators.router import CHOSEN_EXPERTS, EXPERT_WEIGHTS, ROUTING
from apr_falsify.operators.short_conv import SHORT_CONV
from apr_falsify.operators.sigmoid_gate import CONV_GATE, SIGMOID_GATE
from apr_falsify.operators.sinks import SINK_SOFTMAX
from apr_falsify.operators.site import Site
from apr_falsify.operators.softcap import SOFTCAP
from apr_falsify.operators.state_space import STATE_SPACE, STEP, STEP_DECAY
from apr_falsify.operators.temperature import TEMPERATURE

OPERATORS: Mapping[str, Operator] = {
    each.name: each
    for each in (
        EMBED,
        RMS_NORM,
        LAYER_NORM,
        LINEAR,
        LATENT_HEADS,
        SHARED_ROTARY,
        BIAS,
        ROTARY,
        L2_NORM,
        TEMPERATURE,
        SCORES,
        SOFTMAX,
        SINK_SOFTMAX,
        MIX,
        SIGMOID_GATE,
        CONV_GATE,
        SHORT_CONV,
        BETA,
        DECAY,
        GATED_DELTA,
        GATED_NORM,
        STEP,
        STEP_DECAY,
        STATE_SPACE,
        GATE_THEN_NORM,
        ADD,
        ACTIVATION,
        GATE,
        ROUTING,
        MIXTURE,
        CHOSEN_EXPERTS,
        EXPERT_WEIGHTS,
        LAST_MIXTURE,
        HEAD,
        LOGITS,
        SOFTCAP,
    )
}
"""Name -> operator."""

_of_users: dict[str, tuple[Path, Operator]] = {}
"""Name -> the user's file that brought the operator (``family_file.py``), and the operator."""


def known_operators() -> dict[str, Operator]:
    """Return the operators of the table, then those that users' files brought, by name."""
    return {**OPERATORS, **{name: brought for name, (_, brought) in _of_users.items()}}


def check_free(path: Path, name: str) -> None:
    """Check that the user's file at the resolved ``path`` may bring an operator called ``name``.

    Raises:
        FamilyError: there is one of that name already.

    """
    if name in OPERATORS or _of_users.get(name, (path,))[0] != path:
        raise FamilyError(
            f"an operator called {name!r} is there already", remedy="give this one a name of its own"
        )


def keep_operators(path: Path, operators: Iterable[Operator]) -> None:
    """Take in the operators of the user's file at the resolved ``path``, for those that it brought before."""
    for name in [name for name, (where, _) in _of_users.items() if where == path]:
        del _of_users[name]
    _of_users.update({each.name: (path, each) for each in operators})


def operator_of(node: Node) -> Operator:
    """Return the operator of a node.

    Raises:
        FamilyError: there is none of that name.

    """
    known = OPERATORS.get(node.operator)
    if known is not None:
        return known
    if node.operator in _of_users:
        return _of_users[node.operator][1]
    raise FamilyError(
        f"the node {node.stage} has the operator {node.operator!r}, which is not known",
        expected="one of " + ", ".join(known_operators()),
        remedy=nearest(node.operator, known_operators()),
    )


def check_operators(graph: Graph) -> None:
    """Check that every node of a graph has a known operator.

    Raises:
        FamilyError: one has none.

    """
    for nodes in (graph.first, *graph.layers, graph.ends):
        for node in nodes.values():
            operator_of(node)


FUSED: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn_scores", "attn_softmax"),
    "attn_softmax": ("attn_scores",),
    "qkv_bias": ("qkv_matmul",),
}
"""Stage -> the steps that many runtimes do within it: in one kernel, or in one module with the bias."""


def unseen_steps(name: str, known: Collection[str]) -> tuple[str, ...]:
    """Return the steps that stage ``name`` is computed through because none of them is ``known``."""
    steps = FUSED.get(name, ())
    return () if any(step in known for step in (*steps, "attn_scores_uncapped")) else steps


def span_of(
    name: str,
    geometry: Geometry,
    layer: int | None,
    apart: Collection[str] = (),
    through: Collection[str] = (),
) -> tuple[Node, ...]:
    """Return the nodes that stage ``name`` is computed through, in order; it is the last of them.

    Args:
        name: a stage that the model has.
        geometry: the model's geometry.
        layer: its layer.
        apart: inner stages that are known by themselves, so that the span begins after them.
        through: other stages that are computed through, see :func:`unseen_steps`.

    """
    node = node_of(name, geometry, layer)
    before = [
        each
        for source in node.inputs.values()
        if source in STAGES and source not in apart and (_is_within(source) or source in through)
        for each in span_of(source, geometry, layer, apart, through)
    ]
    # What two nodes of the span are computed from is computed once.
    once = {each.stage: each for each in before}
    return (*once.values(), node)


def _is_within(name: str) -> bool:
    return STAGES[name].inner and not STAGES[name].composed


def span_from(name: str, geometry: Geometry, layer: int | None, known: Collection[str]) -> tuple[Node, ...]:
    """Return the nodes that stage ``name`` is computed through from the stages that are ``known``."""
    return span_of(name, geometry, layer, known, unseen_steps(name, known))


def boundary_of(span: tuple[Node, ...]) -> dict[str, str]:
    """Return what a span is computed from: argument -> the stage of the layer that supplies it."""
    within = {node.stage for node in span}
    return {
        argument: source for node in span for argument, source in node.inputs.items() if source not in within
    }


def operation_of(span: tuple[Node, ...]) -> Operation:
    """Return how runtimes hold the operands of a span: as those of the product within it, or of both."""
    kinds = [operator_of(node).operation for node in span]
    if Operation.SCORES in kinds and Operation.MIX in kinds:
        return Operation.ATTENTION
    return next((kind for kind in kinds if kind is not Operation.ELEMENTWISE), Operation.ELEMENTWISE)


def products_in(span: tuple[Node, ...]) -> int:
    """Return how many nodes of a span multiply with weights."""
    return sum(operator_of(node).operation is Operation.PROJECTION for node in span)


def kept_by(span: tuple[Node, ...]) -> tuple[str, ...]:
    """Return the arguments of a span of which a later pass reads those of earlier ones too."""
    states = (argument for node in span for argument in operator_of(node).kept or ())
    return (*CACHED.get(operation_of(span), ()), *states)


def operation_at(name: str, geometry: Geometry, layer: int | None, apart: Collection[str] = ()) -> Operation:
    """Return how runtimes hold the operands of stage ``name``."""
    return operation_of(span_of(name, geometry, layer, apart))


def compute(name: str, inputs: Inputs, site: Site) -> Array:
    """Return stage ``name`` in its canonical shape, from inputs in theirs.

    Args:
        name: a stage that the model has.
        inputs: by argument: what :func:`boundary_of` names, all in ``site.dtype``.
        site: weights, layer, tokens and number format.

    """
    span = span_from(name, site.geometry, site.layer, inputs)
    # Values that are not finite are data, and so is what they, or an overflow, lead to.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return computed(span, inputs, site)[name]


def computed(span: tuple[Node, ...], inputs: Inputs, site: Site) -> dict[str, Array]:
    """Return every stage of a span."""
    made: dict[str, Array] = {}
    for node in span:
        made[node.stage] = operator_of(node).values(node, arguments(node, inputs, made), site)
    return made


_T = TypeVar("_T")


def arguments(node: Node, inputs: Mapping[str, _T], made: Mapping[str, _T]) -> dict[str, _T]:
    """Return the inputs of a node within a span: those of the span, or what was made on the way."""
    return {name: made[source] if source in made else inputs[name] for name, source in node.inputs.items()}
