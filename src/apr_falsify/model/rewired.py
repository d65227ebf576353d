"""Nodes of a layer with a further one between them: what most models do, and a step more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from apr_falsify.model.graph import Node, Nodes, Tap


def followed(nodes: Iterable[Node], stage: str, after: Node, shown: Tap) -> Nodes:
    """Return ``nodes`` in which the node of ``stage`` is followed by another one.

    Who read ``stage`` reads what follows it, under the same argument, and transformers shows that where it
    showed ``stage``.

    Args:
        nodes: the nodes of a layer.
        stage: the stage that is followed.
        after: the node that follows; its tap is that of ``stage``.
        shown: where transformers shows ``stage`` itself.

    """
    found: list[Node] = []
    for node in nodes:
        if node.stage == stage:
            found += [replace(node, tap=shown), replace(after, tap=node.tap)]
        else:
            inputs = {
                name: after.stage if source == stage else source for name, source in node.inputs.items()
            }
            found.append(replace(node, inputs=inputs))
    return tuple(found)
