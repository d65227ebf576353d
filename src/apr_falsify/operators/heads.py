"""Heads and parts: the columns of q, k and v in q|k|v, and arrays with the heads apart."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Inputs, only
from apr_falsify.operators.roundoff import F64, Ins, Known

Array = npt.NDArray[np.floating[Any]]
FUSED = "qkv_bias"
"""The argument that holds q|k|v."""


def parts(geometry: Geometry) -> dict[str, slice]:
    """Return the columns of q, k and v in q|k|v."""
    q, kv = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    v = geometry.kv_heads * geometry.value_dim
    return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + kv + v)}


def head_size(part: str, geometry: Geometry) -> int:
    """Return how wide a head of q, of k or of v is."""
    return geometry.value_dim if part == "v" else geometry.head_dim


_Number = TypeVar("_Number", bound=np.generic)


def values_of(qkv: npt.NDArray[_Number], geometry: Geometry) -> npt.NDArray[_Number]:
    """Return v, which stands last in q|k|v: [S, K*Dv]; of v alone all of it."""
    return qkv[:, -geometry.kv_heads * geometry.value_dim :]


def part_of(node: Node, inputs: Inputs, geometry: Geometry) -> Array:
    """Return what a node of q or k works on: its columns of q|k|v, or its input where that is apart."""
    x = only(inputs)
    return x[..., parts(geometry)[node["part"]]] if FUSED in inputs else x


def known_part_of(node: Node, ins: Ins, geometry: Geometry) -> Known:
    """Return the same of an input that carries rounding."""
    known = only(ins)
    if FUSED not in ins:
        return known
    columns = parts(geometry)[node["part"]]
    sigma = None if known.sigma is None else known.sigma[..., columns]
    return Known(value=known.value[..., columns], sigma=sigma)


def part_text(node: Node) -> str:
    """Return the expression for what a node of q or k works on."""
    argument = next(iter(node.inputs))
    if argument != FUSED:
        return argument
    columns = {"q": "[:, : heads * head_dim]", "k": "[:, heads * head_dim : (heads + kv_heads) * head_dim]"}
    return argument + columns[node["part"]]


_A = TypeVar("_A", Array, F64)


def by_head(x: _A, head_dim: int) -> _A:
    """Return [S, heads * D] as [heads, S, D]."""
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def flat(heads: _A) -> _A:
    """Return [heads, S, D] as [S, heads * D]."""
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


def for_queries(heads: _A, geometry: Geometry) -> _A:
    """Return kv heads [K, S, D], each repeated for the query heads that share it: [H, S, D]."""
    return np.repeat(heads, geometry.heads // geometry.kv_heads, axis=0)
