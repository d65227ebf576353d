"""llama.cpp's compute graph: which of its nodes is which stage, and how each is laid out.

A raw capture maps the name of a node (``Qcur-0``) to its values, ggml's axes reversed, so that the last axis
is contiguous. A name occurs several times: as the steps of one evaluation (product, bias, rotation), and once
more in each further evaluation, where a prompt was run in several batches; the second and third occurrence
have ``#2`` and ``#3`` behind the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Layout, Scope
from apr_falsify.numerics.quantise import ROTATED_BLOCK, hadamard
from apr_falsify.traces.trace import StageArray

Values = npt.NDArray[Any]
Arrays = Mapping[str, Values]

UNROTATED = "kqv_unrotated"
"""The node in which a quantised V cache was rotated back, [tokens * blocks, block]; nameless in llama.cpp."""


class StageNode(NamedTuple):
    """Where llama.cpp's graph has a stage.

    Attributes:
        names: its node, and what other versions call it.
        biased: its node where the model has such biases: the plain one is the product before it is added.
        twice: which occurrence it is of a node that may occur twice in one evaluation.
        layout: how it is stored.

    """

    names: tuple[str, ...]
    biased: tuple[str, ...] = ()
    twice: int | None = None
    layout: tuple[Layout, ...] = ()


NODES: Mapping[str, StageNode] = {
    "embedding": StageNode(("embd", "inp_embd")),
    "attn_norm": StageNode(("attn_norm-{n}",)),
    # The scale is applied inside llama.cpp's softmax.
    "attn_scores": StageNode(("kq-{n}",), layout=(Layout.UNSCALED, Layout.PADDED_KEYS)),
    "attn_softmax": StageNode(("kq_soft_max-{n}", "kq_soft_max_ext-{n}"), layout=(Layout.PADDED_KEYS,)),
    "attention": StageNode((f"{UNROTATED}-{{n}}", "kqv_out-{n}")),
    "attn_out": StageNode(("attn_out-{n}",), twice=-1),  # the second is the sum of the first and its bias
    "post_attn_residual": StageNode(("ffn_inp-{n}",)),
    "ffn_norm": StageNode(("ffn_norm-{n}",)),
    "ffn_gate": StageNode(("ffn_gate-{n}", "ffn_gate_b-{n}"), biased=("ffn_gate_b-{n}",)),
    "ffn_up": StageNode(("ffn_up-{n}", "ffn_up_b-{n}"), biased=("ffn_up_b-{n}",)),
    "ffn_silu": StageNode(("ffn_silu-{n}",)),
    "ffn_swigl": StageNode(("ffn_swiglu-{n}", "ffn_gate_par-{n}")),
    "ffn_out": StageNode(("ffn_out-{n}",), twice=0),  # the second is what a control vector is added to
    "post_ffn_residual": StageNode(("l_out-{n}",)),
    "final_norm": StageNode(("result_norm",)),
    "lm_head": StageNode(("result_output",)),
}
"""Stage -> where the graph has it; q, k and v are read by :func:`_projected`."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "qkv_matmul": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "qkv_bias": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "q_post_rope": ("Qcur-{n}",),
    "k_post_rope": ("Kcur-{n}",),
}
"""Stage -> the nodes of which it is one occurrence."""

FLASH_HIDES = ("attn_scores", "attn_softmax")
"""Stages that flash attention computes within the one operation that gives ``attention``."""

MEASURED: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""The families whose graph was looked at; the nodes of others may mean something else."""

_LAYER_NODE = re.compile(r"[A-Za-z_]+-([0-9]{1,9})")

FAR, NEAR = 0.5, 0.25
"""Relative L2 beyond which the first token's attention is not its V, and within which it is (4 bits: 0.1)."""


def nodes_of(keys: Iterable[Key]) -> list[str]:
    """Return the nodes that the stages ``keys`` are read from."""
    found: dict[str, None] = {}
    for layer, name in keys:
        for node in (*(NODES[name].names if name in NODES else ()), *STEPS.get(name, ())):
            found[node.format(n=layer)] = None
    return list(found)


def check_family(geometry: Geometry, where: Path) -> None:
    """Refuse a family whose graph nobody looked at.

    Raises:
        TraceError: it is another family.

    """
    if family_of(geometry).name not in MEASURED:
        raise TraceError(
            f"llama.cpp's graph of {family_of(geometry).title} is not known here",
            where=where,
            expected="a model of the families " + ", ".join(MEASURED),
        )


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
        for place in _places(name, layers):
            if (node := reader.node(name, place)) is not None:
                found = _of_stage(reader, node, Key(place, name), runs)
                if found is not None and not _last_query_alone(found, name, tokens):
                    yield Key(place, name), _checked(found, name, tokens, where)


def _places(name: str, layers: Sequence[int]) -> list[int | None]:
    places: Mapping[Scope, list[int | None]] = {
        Scope.LAYER: [*layers],
        Scope.FIRST_LAYER: [0],
        Scope.MODEL: [None],
    }
    return places[STAGES[name].scope]


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

    def node(self, name: str, place: int | None) -> str | None:
        """Return the node of a stage, ``None`` where it was not recorded."""
        row = NODES[name]
        patterns = (self.geometry.mlp_bias and row.biased) or row.names
        return next((node for each in patterns if (node := each.format(n=place)) in self.arrays), None)

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
            for place in _places(name, self.layers)
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
    steps = reader.steps(node, runs)[NODES[name].twice or 0]
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
    unrotated = len(steps["V"]) or len(names) + 1
    rotated = {
        f"{letter.lower()}_post_rope": joined[letter][-1][0]
        for letter in "QK"
        if len(steps[letter]) > unrotated
    }
    stages = {
        name: np.concatenate([flat[letter][index] for letter in "QKV"], axis=-1)
        for index, name in enumerate(names)
        if all(len(flat[letter]) > index for letter in "QKV")
    }
    return {**stages, **rotated}


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
