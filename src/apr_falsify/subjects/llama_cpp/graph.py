"""llama.cpp's compute graph: which of its nodes is which stage, and how each is laid out.

A raw capture maps the name of a node (``Qcur-0``) to its values, ggml's axes reversed, so that the last axis
is contiguous. A name occurs several times: as the steps of one evaluation (product, bias, rotation), and once
more in each further evaluation, where a prompt was run in several batches; the second and third occurrence
have ``#2`` and ``#3`` behind the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Layout, Scope
from apr_falsify.model.wiring import stages_of
from apr_falsify.numerics.quantise import ROTATED_BLOCK, hadamard
from apr_falsify.subjects.llama_cpp.nodes import NODES, NORMED, UNROTATED, StageNode
from apr_falsify.traces.trace import StageArray

Values = npt.NDArray[Any]
Arrays = Mapping[str, Values]

_LAYER_NODE = re.compile(r"[A-Za-z_]+-([0-9]{1,9})")

FAR, NEAR = 0.5, 0.25
"""Relative L2 beyond which the first token's attention is not its V, and within which it is (4 bits: 0.1)."""


def stages_of_capture(
    arrays: Arrays, geometry: Geometry, tokens: int, interleaved: bool, where: Path
) -> Iterator[tuple[Key, StageArray]]:
    """Yield the stages that a raw capture holds, each read when it is requested.

    Args:
        arrays: node -> values.
        geometry: the model's geometry.
        tokens: S.
        interleaved: whether q and k are interleaved rotary pairs (the llama family's GGUF).
        where: the capture, for messages.

    Raises:
        TraceError: the graph was not evaluated on S tokens, or a node has another shape than its stage.

    """
    reader = Reader(arrays=arrays, geometry=geometry, where=where)
    layers = reader.layers
    runs = reader.evaluations()
    rotary = (Layout.INTERLEAVED,) if interleaved else ()
    for layer in layers:
        for name, values in _projected(reader, layer, runs).items():
            yield Key(layer, name), _checked(StageArray(data=values, layout=rotary), name, tokens, where)
    for name in NODES:
        for place in reader.places(name):
            if (node := reader.node(name, place)) is not None:
                found = _of_stage(reader, node, Key(place, name), runs)
                if found is not None and not _last_query_alone(found, name, tokens):
                    yield Key(place, name), _checked(found, name, tokens, where)


def occurrences(arrays: Arrays, name: str) -> list[str]:
    """Return the names of a node's occurrences, in the order of the graph."""
    found: list[str] = []
    while (key := name if not found else f"{name}#{len(found) + 1}") in arrays:
        found.append(key)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Finds nodes in a raw capture, and refuses those of another shape than their stage's.

    Attributes:
        arrays: node -> values.
        geometry: the model's geometry.
        where: the capture, for messages.

    """

    arrays: Arrays
    geometry: Geometry
    where: Path

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which it has any node."""
        found = {int(match[1]) for name in self.arrays if (match := _LAYER_NODE.fullmatch(name))}
        return tuple(sorted(found))

    def places(self, name: str) -> list[int | None]:
        """Return the layers in which this model has a stage; ``None`` for the whole model."""
        layers = [n for n in self.layers if n < self.geometry.layers]
        places: Mapping[Scope, list[int | None]] = {
            Scope.LAYER: [*layers],
            Scope.FIRST_LAYER: [0],
            Scope.MODEL: [None],
        }
        return [place for place in places[STAGES[name].scope] if name in stages_of(self.geometry, place)]

    def node(self, name: str, place: int | None) -> str | None:
        """Return the node of a stage, ``None`` where it was not recorded."""
        row = self.row(name, place)
        biased = self.geometry.mlp_bias or self.geometry.expert_bias
        patterns = (biased and row.biased) or row.names
        return next((node for each in patterns if (node := each.format(n=place)) in self.arrays), None)

    def row(self, name: str, place: int | None) -> StageNode:
        """Return where the graph of this model has a stage."""
        inner = {"attn_out": "attn_proj", "ffn_out": "ffn_proj"}.get(name)
        normed = inner is not None and inner in stages_of(self.geometry, place)
        return NORMED[name] if normed else NODES[name]

    def evaluations(self) -> int:
        """Return how many times the graph was evaluated: once for each batch that the prompt was run in.

        Raises:
            TraceError: some node was recorded more often than another.

        """
        counts, twice = self._counts()
        runs = min(counts.values(), default=1)
        differing = {node: count for node, count in counts.items() if count != runs}
        differing |= {node: count for node, count in twice.items() if count not in (runs, 2 * runs)}
        if differing:
            most, least = max(differing, key=differing.__getitem__), min(counts, key=counts.__getitem__)
            raise TraceError(
                f"{most} was recorded {differing[most]} times and {least} {counts[least]} times",
                where=self.where,
                expected="every node once for each evaluation of the graph",
                remedy="record one run of the prompt from its first batch to its last, and no warm-up",
            )
        return runs

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how often each node of a stage was recorded, apart from it those that may be there twice."""
        found = {
            (name, node): len(occurrences(self.arrays, node))
            for name in NODES
            for place in self.places(name)
            if (node := self.node(name, place)) is not None
        }
        once = {node: count for (name, node), count in found.items() if NODES[name].twice is None}
        twice = {node: count for (name, node), count in found.items() if NODES[name].twice is not None}
        return (once, twice) if once else (twice, {})

    def steps(self, node: str, runs: int) -> list[list[str]]:
        """Return, step by step, the names of a node's occurrences in each evaluation.

        Raises:
            TraceError: it does not occur as often in each.

        """
        found = occurrences(self.arrays, node)
        if len(found) % runs:
            raise TraceError(
                f"{node} was recorded {len(found)} times in {runs} evaluations of the graph",
                where=self.where,
                expected="as many times in each evaluation",
            )
        count = len(found) // runs
        return [found[step::count] for step in range(count)]

    def rows(self, names: Sequence[str], width: int) -> tuple[Values, bool]:
        """Join nodes to [tokens, width], and tell whether they lie so, and not as [tokens, heads, head_dim].

        Raises:
            TraceError: one has another shape.

        """
        heads, parts = (width // self.geometry.head_dim, self.geometry.head_dim), []
        flat = True
        for name in names:
            values = self.arrays[name]
            flat = values.shape[-1:] == (width,)
            in_blocks = name.startswith(UNROTATED) and values.shape[-1:] == (ROTATED_BLOCK,)
            if not (flat or values.shape[-2:] == heads or (in_blocks and values.size % width == 0)):
                raise self._misshapen(name, values, f"[..., tokens, {width}]")
            parts.append(values.reshape(-1, width))
        return np.concatenate(parts), flat

    def square(self, name: str) -> Values:
        """Return a node as [heads, tokens, keys].

        Raises:
            TraceError: it has another shape.

        """
        values, heads = self.arrays[name], self.geometry.heads
        if values.ndim < 3 or math.prod(values.shape[:-3]) != 1 or values.shape[-3] != heads:
            raise self._misshapen(name, values, f"[1, {heads} heads, tokens, keys]")
        return values.reshape(values.shape[-3:])

    def _misshapen(self, name: str, values: Values, expected: str) -> TraceError:
        return TraceError(
            f"{name} has the shape {list(values.shape)}",
            where=self.where,
            expected=f"{expected}: ggml's axes reversed, of the model that is named",
            remedy="name the model that was recorded, and record the nodes as they are",
        )


def _of_stage(reader: Reader, node: str, key: Key, runs: int) -> StageArray | None:
    """Join a node's evaluations along the tokens and drop ggml's leading axes of 1."""
    layer, name = key
    axes = STAGES[name].axes
    steps = reader.steps(node, runs)[reader.row(name, layer).twice or 0]
    if layout := NODES[name].layout:
        return _square([reader.square(step) for step in steps], layout, runs)
    width = reader.geometry.dims(1)[axes[-1]]
    rows, _ = reader.rows(steps, width)
    if not len(rows):  # no batch requested logits
        return None
    if name == "attention" and layer is not None:
        rows = _unrotated(reader, node, layer, rows)
    return StageArray(data=rows if axes[0] == "tokens" else rows[-1])


def _last_query_alone(array: StageArray, name: str, tokens: int) -> bool:
    """Whether scores or weights are those of one query of several, a form that no stage has."""
    return bool(NODES[name].layout) and array.data.shape[1] == 1 < tokens


def _square(parts: list[Values], layout: tuple[Layout, ...], runs: int) -> StageArray:
    """Join [H, S', keys] of several evaluations; those that came first had not seen the later keys."""
    keys = max(part.shape[-1] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, 0), (0, keys - part.shape[-1]))) for part in parts]
    if runs == 1:
        return StageArray(data=wide[0], layout=layout)
    return StageArray(data=np.tril(np.concatenate(wide, axis=1)), layout=(*layout, Layout.CAUSAL_ZEROED))


def _checked(array: StageArray, name: str, tokens: int, where: Path) -> StageArray:
    """Name a row for one token of several as the last one; refuse any other number of rows."""
    axes = STAGES[name].axes
    if "tokens" not in axes:
        return array
    rows = array.data.shape[0 if axes[0] == "tokens" else 1]
    if axes[0] == "tokens" and rows == 1 < tokens:
        return StageArray(data=array.data[0], layout=(*array.layout, Layout.LAST_TOKEN))
    if rows != tokens:
        raise TraceError(
            f"{name} was recorded for {rows} tokens, and {tokens} were run",
            where=where,
            expected="a recording of one run of these tokens",
            remedy="pass all the ids that were run as --tokens, and record no warm-up",
        )
    return array


def _projected(reader: Reader, layer: int, runs: int) -> dict[str, Values]:
    """Return qkv_matmul, qkv_bias and both rotated stages from the nodes Qcur, Kcur and Vcur.

    In an evaluation's order a name's nodes are the product, the sum with the bias where the model has
    one (both [S, width]), a view [S, heads, D], and for q and k the rotated [S, heads, D]: one node more
    than of v, which is how the rotated ones are known from a view where not all were recorded.
    """
    geometry = reader.geometry
    names = _before_rotation(geometry)
    sizes = dict(zip("QKV", (geometry.heads, geometry.kv_heads, geometry.kv_heads), strict=True))
    steps = {letter: reader.steps(f"{letter}cur-{layer}", runs) for letter in sizes}
    joined = {
        letter: [reader.rows(step, sizes[letter] * geometry.head_dim) for step in steps[letter]]
        for letter in sizes
    }
    flat = {letter: _products(found, len(names)) for letter, found in joined.items()}
    rows = sorted({len(values) for found in flat.values() for values in found})
    if len(rows) > 1:
        what = f"Qcur-{layer}, Kcur-{layer} and Vcur-{layer} were recorded for {rows} tokens"
        raise TraceError(what, where=reader.where, expected="the same tokens for all three")
    rotated = {
        f"{letter.lower()}_post_rope": values
        for letter in "QK"
        if (values := _rotated_rows(reader, layer, letter, joined, sizes[letter], len(names))) is not None
    }
    stages = {
        name: np.concatenate([flat[letter][index] for letter in "QKV"], axis=-1)
        for index, name in enumerate(names)
        if all(len(flat[letter]) > index for letter in "QKV")
    }
    return {**stages, **rotated}


def _rotated_rows(
    reader: Reader,
    layer: int,
    letter: str,
    joined: Mapping[str, list[tuple[Values, bool]]],
    heads: int,
    products: int,
) -> Values | None:
    """Return q or k after RoPE: where a live run says so, else by how often the nodes occur.

    A layer that rotates nothing has no such node: what comes before it is what goes on.
    """
    node, width = f"{letter}cur-{layer}", heads * reader.geometry.head_dim
    if (which := reader.arrays.get(f"{node}@rotated")) is not None:
        names = [node if number == 1 else f"{node}#{number}" for number in which.tolist()]
        return reader.rows(names, width)[0]
    if reader.geometry.rope_at(layer).kind == "none" and joined[letter]:
        return joined[letter][-1][0]
    unrotated = len(joined["V"]) or products + 1
    return joined[letter][-1][0] if len(joined[letter]) > unrotated else None


def _products(steps: list[tuple[Values, bool]], count: int) -> list[Values]:
    """Return the ``count`` steps before the heads are parted; none where some of them were not recorded."""
    flat = [rows for rows, is_flat in steps[:count] if is_flat]
    return flat if len(flat) == min(count, len(steps)) else []


def _before_rotation(geometry: Geometry) -> tuple[str, ...]:
    return ("qkv_matmul", "qkv_bias") if geometry.qkv_bias else ("qkv_matmul",)


def _unrotated(reader: Reader, node: str, layer: int, rows: Values) -> Values:
    """Undo the rotation in which a quantised V cache is stored, where a recording holds its result in it.

    With one key to look at, the first token's attention is its V: rotated, where the values are.
    """
    arrays, geometry = reader.arrays, reader.geometry
    dims = geometry.head_dim
    steps = occurrences(arrays, f"Vcur-{layer}")[: len(_before_rotation(geometry))]
    if f"kq-{layer}" in arrays or not node.startswith("kqv_out") or not steps or dims % ROTATED_BLOCK:
        return rows
    values = arrays[steps[-1]].reshape(-1, geometry.kv_heads, dims)[0]
    first = np.repeat(values, geometry.heads // geometry.kv_heads, axis=0)
    seen, first = (part.reshape(-1, ROTATED_BLOCK) for part in (rows[0], first))
    # A distance that is no number, of values that are not finite, shows nothing: then the rows stay.
    if not (_distance(seen, first) >= FAR and _distance(seen, _rotated(first)) <= NEAR):
        return rows
    return _rotated(rows.reshape(-1, ROTATED_BLOCK)).reshape(rows.shape)


def _rotated(parts: Values) -> Values:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((parts @ hadamard(ROTATED_BLOCK)).astype(np.float32))


def _distance(found: Values, expected: Values) -> float:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
