"""Which stages a model has, and who feeds whom in it: questions to the graph by (layer, stage)."""

from __future__ import annotations

from apr_falsify.errors import StageError
from apr_falsify.model.families import family_of, graph_of
from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT, STAGES, Key, Scope


def stages_of(geometry: Geometry, layer: int | None = None) -> tuple[str, ...]:
    """Return the stages that a model of this geometry has, in the order of the table.

    Args:
        geometry: the model's geometry.
        layer: the layer, ``None`` for the stages of any; those of the whole model are always among them.

    """
    graph = graph_of(geometry)
    layers = graph.layers if layer is None else (graph.layers[layer],)
    present = {*graph.first, *graph.ends, *(stage for nodes in layers for stage in nodes)}
    return tuple(name for name in STAGES if name in present)


def node_of(name: str, geometry: Geometry, layer: int | None) -> Node:
    """Return the node of stage ``name``.

    Raises:
        StageError: the model has no such stage there.

    """
    node = graph_of(geometry).at(layer).get(name)
    if node is None:
        raise StageError(f"a {family_of(geometry).title} model of this geometry has no stage {name}")
    return node


def has_stage(name: str, geometry: Geometry, layer: int | None) -> bool:
    """Whether a model has stage ``name`` in ``layer`` (``None``: among those of the whole model)."""
    return name in graph_of(geometry).at(layer)


def inputs_of(name: str, geometry: Geometry, layer: int | None) -> dict[str, Key]:
    """Return what stage ``name`` is computed from: input name -> the (layer, stage) that supplies it."""
    node = node_of(name, geometry, layer)
    return {argument: supplier_of(source, geometry, layer) for argument, source in node.inputs.items()}


def supplier_of(source: str, geometry: Geometry, layer: int | None) -> Key:
    """Return the (layer, stage) that a node of ``layer`` means by ``source``."""
    if source == LAYER_INPUT:
        assert layer is not None
        return Key(0, "embedding") if layer == 0 else Key(layer - 1, "post_ffn_residual")
    if layer is None and STAGES[source].scope is not Scope.MODEL:
        return Key(geometry.layers - 1, source)
    return Key(layer, source)
