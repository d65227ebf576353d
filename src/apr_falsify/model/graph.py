"""A model as a graph: nodes in forward order, each a stage, an operator, and what it is computed from.

A family gives the nodes of its layers and of the whole model (``families/``); what a node computes is its
operator's file (``operators/``). Everything that runs, replays, probes or explains a model walks the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from apr_falsify.errors import FamilyError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT, STAGES, Scope


class ModulePlace(StrEnum):
    """A module of a layer that is not found by a weight."""

    LAYER = "layer"
    ATTENTION_FUNCTION = "attention-function"
    MIXTURE = "mixture"
    FUNCTION = "function"
    """A function that a mixer's module calls: a convolution, or a scan."""


class Pick(StrEnum):
    """Where in a module's call a stage is."""

    INPUT = "input"
    OUTPUT = "output"
    HEADS_INPUT = "heads-input"
    """The input of a module that works on [S, heads, D]."""
    HEADS = "heads"
    """The output of a module that works on [heads, S, D]."""
    LAST_ROW = "last-row"
    """The last token's row of the output."""
    ROUTER_LOGITS = "router-logits"
    """A router's first output."""
    ROUTING = "routing"
    """A router's second output, weights, where its third says: one column an expert."""
    LAST_WEIGHTS = "last-weights"
    """The last token's row of a router's second output, the largest first."""
    LAST_INDICES = "last-indices"
    """The last token's row of a router's third output, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """Where transformers shows a stage.

    Attributes:
        module: the role whose weight the module holds, a :class:`ModulePlace`, or a path within the layer
            that begins with a dot.
        pick: which part of its call the stage is.
        added: the path of another module whose output the layer adds to that; empty for none.
        call: of a module that is called more than once in a pass: which call, of how many.

    """

    module: str
    pick: Pick = Pick.OUTPUT
    added: str = ""
    call: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One step of the forward pass.

    Attributes:
        stage: the stage that it computes.
        operator: the name of what it computes, a file in ``operators/``.
        inputs: argument -> the stage of the same layer that supplies it (``layer_input``: what enters the
            layer). An argument's name is that of the stage which it is in most models.
        roles: the weights that it uses, by role.
        constants: what else the operator needs to know, beside the geometry.
        tap: where transformers shows it, ``None`` where nowhere.

    """

    stage: str
    operator: str
    inputs: Mapping[str, str]
    roles: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    tap: Tap | None = None

    def __getitem__(self, constant: str) -> Any:
        """Return one of its constants."""
        return self.constants[constant]


Nodes = tuple[Node, ...]
Layer = Callable[[Geometry, int], Nodes]
"""Gives the nodes of one layer, in forward order."""
Ends = Callable[[Geometry], Nodes]
"""Gives the nodes of the whole model, in forward order: the embedding, and what follows the last layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The nodes of one model.

    Attributes:
        first: the nodes before layer 0, whose key is of layer 0.
        layers: per layer its nodes, stage -> node, in forward order.
        ends: the nodes after the last layer.

    """

    first: Mapping[str, Node]
    layers: tuple[Mapping[str, Node], ...]
    ends: Mapping[str, Node]

    def at(self, layer: int | None) -> Mapping[str, Node]:
        """Return the nodes of ``layer``, or of the whole model: stage -> node, in forward order."""
        if layer is None:
            return self.ends
        return {**self.first, **self.layers[layer]} if layer == 0 else self.layers[layer]


def graph_of_nodes(first: Iterable[Node], layers: Iterable[Iterable[Node]], ends: Iterable[Node]) -> Graph:
    """Return the graph of these nodes.

    Raises:
        FamilyError: a node without an input, of no stage, twice there, or before what it is computed from.

    """
    return Graph(
        first=_ordered(first, Scope.FIRST_LAYER, frozenset()),
        layers=tuple(_layers(layers)),
        ends=_ordered(ends, Scope.MODEL, frozenset({"post_ffn_residual"})),
    )


def _layers(layers: Iterable[Iterable[Node]]) -> Iterator[Mapping[str, Node]]:
    """Give the nodes of each layer; layers that are alike share theirs."""
    last: dict[str, Node] = {}
    for index, nodes in enumerate(layers):
        listed = list(nodes)
        if not last or listed != list(last.values()):
            last = _ordered(listed, Scope.LAYER, frozenset({LAYER_INPUT}))
        if "post_ffn_residual" not in last:
            raise FamilyError(f"layer {index} has no node post_ffn_residual, with which a layer ends")
        yield last


def _ordered(nodes: Iterable[Node], scope: Scope, known: frozenset[str]) -> dict[str, Node]:
    """Check the nodes of one layer, or of one end of the model."""
    listed = list(nodes)
    done: dict[str, Node] = {}
    for node in listed:
        _check_stage(node, scope)
        if node.stage in done:
            raise FamilyError(
                f"two nodes are called {node.stage}", remedy="give one of them the name of another stage"
            )
        if not node.inputs and scope is not Scope.FIRST_LAYER:
            raise FamilyError(
                f"the node {node.stage} has no input",
                expected="the stages that it is computed from, or layer_input",
            )
        for source in node.inputs.values():
            if source not in done and source not in known:
                raise FamilyError(_unordered(node.stage, source, listed), expected="nodes in forward order")
        done[node.stage] = node
    return done


def _check_stage(node: Node, scope: Scope) -> None:
    if node.stage not in STAGES:
        raise FamilyError(f"the node {node.stage!r} is no stage", expected="one of " + ", ".join(STAGES))
    if STAGES[node.stage].scope is not scope:
        raise FamilyError(
            f"the node {node.stage} stands in the wrong place",
            expected=f"the place of its scope, {STAGES[node.stage].scope}",
        )


def _unordered(stage: str, source: str, nodes: list[Node]) -> str:
    inputs = {node.stage: tuple(node.inputs.values()) for node in nodes}
    if source not in inputs:
        return f"the node {stage} is computed from {source}, which is no node of its layer"
    if path := _path(source, stage, inputs):
        return f"the node {stage} is computed from itself: a circle, " + " <- ".join((stage, *path))
    return f"the node {stage} is computed from {source}, which comes after it"


def _path(start: str, end: str, inputs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the stages from ``start`` back to ``end``, each computed from the next; none lead: empty."""
    paths: dict[str, tuple[str, ...]] = {start: (start,)}
    waiting = [start]
    while waiting and end not in paths:
        at = waiting.pop()
        for source in inputs.get(at, ()):
            if source not in paths:
                paths[source] = (*paths[at], source)
                waiting.append(source)
    return paths.get(end, ())
