"""What an operator is: one thing that nodes compute, with its rounding and its formula as text.

Each operator is one file here, and a line in ``table.py``. Shapes are those of ``model/stages.py``; S tokens,
H query heads, K kv heads, D head_dim, E hidden. Values may have an axis of arithmetics in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.roundoff import F64, Ins, NoisySite
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]

Inputs = Mapping[str, Array]
"""Argument of a node -> its values in canonical shape."""

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One kind of node.

    Attributes:
        name: how nodes name it.
        values: computes it, in the number format of its inputs: f64 inputs give the f64 reference.
        variance: that of the rounding of a plain f32 runtime, given the inputs with what they carry, the
            result, the place, and the unit roundoff of the format in which the runtime keeps its stages.
        text: the same as lines of NumPy, into a variable of the stage's name: what a porter reads beside
            exported files. Names are those of the arguments, the constants, and ``ROLE_weight``.
        operation: how runtimes hold its operands.
        over_tokens: whether one token's row takes more than that row: its position, or other tokens.
        kept: the arguments of which those of all tokens before make its state, beside what a cache of keys
            and values holds; ``None``: where it is ``over_tokens``, it cannot run in passes.

    """

    name: str
    values: Callable[[Node, Inputs, Site], Array]
    variance: Callable[[Node, Ins, F64, NoisySite, float], F64]
    text: Callable[[Node, Geometry, int | None], Lines]
    operation: Operation = Operation.ELEMENTWISE
    over_tokens: bool = False
    kept: tuple[str, ...] | None = None


_T = TypeVar("_T")


def only(inputs: Mapping[str, _T]) -> _T:
    """Return the one input of a node that has one."""
    (value,) = inputs.values()
    return value


def argument(node: Node) -> str:
    """Return the name of the one argument of a node that has one."""
    (name,) = node.inputs
    return name
