"""llama.cpp's compute graph: which of its nodes is which stage, and how each is laid out.

A raw capture maps the name of a node (``Qcur-0``) to its values, ggml's axes reversed, so that the last axis
is contiguous. A name occurs several times: as the steps of one evaluation (product, bias, rotation), and once
more in each further evaluation, where a prompt was run in several batches; the second and third occurrence
have ``#2`` and ``#3`` behind the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.quantise import hadamard
from apr_falsify.stages import STAGES, Layout, Scope
from apr_falsify.trace import Key, StageArray

Values = npt.NDArray[Any]
Arrays = Mapping[str, Values]

NODES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embd", "inp_embd"),
    "attn_norm": ("attn_norm-{n}",),
    "attn_scores": ("kq-{n}",),
    "attn_softmax": ("kq_soft_max-{n}", "kq_soft_max_ext-{n}"),
    "attention": ("kqv_unrotated-{n}", "kqv_out-{n}"),
    "attn_out": ("attn_out-{n}",),
    "post_attn_residual": ("ffn_inp-{n}",),
    "ffn_norm": ("ffn_norm-{n}",),
    "ffn_gate": ("ffn_gate-{n}",),
    "ffn_up": ("ffn_up-{n}",),
    "ffn_silu": ("ffn_silu-{n}",),
    "ffn_swigl": ("ffn_swiglu-{n}", "ffn_gate_par-{n}"),
    "ffn_out": ("ffn_out-{n}",),
    "post_ffn_residual": ("l_out-{n}",),
    "final_norm": ("result_norm",),
    "lm_head": ("result_output",),
}
"""Stage -> its node, with what other versions call it; q, k and v are read by :func:`_projected`."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "qkv_matmul": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "qkv_bias": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "q_post_rope": ("Qcur-{n}",),
    "k_post_rope": ("Kcur-{n}",),
}
"""Stage -> the nodes of which it is one occurrence."""

LAYOUT: Mapping[str, tuple[Layout, ...]] = {
    "attn_scores": (Layout.UNSCALED, Layout.PADDED_KEYS),
    "attn_softmax": (Layout.PADDED_KEYS,),
}
"""How llama.cpp stores a stage; the scale is applied inside its softmax."""

MEASURED: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""The families whose graph was looked at; the nodes of others may mean something else."""

_LAYER_NODE = re.compile(r"[A-Za-z_]+-(\d+)")

FAR, NEAR = 0.5, 0.25
"""Relative L2 beyond which the first token's attention is not its V, and within which it is.

A 4-bit V cache leaves about 0.1.
"""


def nodes_of(keys: Iterable[Key]) -> list[str]:
    """Return the nodes that the stages ``keys`` are read from."""
    found: dict[str, None] = {}
    for layer, name in keys:
        for node in (*NODES.get(name, ()), *STEPS.get(name, ())):
            found[node.format(n=layer)] = None
    return list(found)


def check_family(geometry: Geometry, where: Path) -> None:
    """Refuse a family whose graph nobody looked at.

    Raises:
        TraceError: it is another family.

    """
    if geometry.row.name not in MEASURED:
        raise TraceError(
            f"llama.cpp's graph of {geometry.row.title} is not known here",
            where=where,
            expected="a model of the families " + ", ".join(MEASURED),
        )


def stages_of_capture(
    arrays: Arrays, geometry: Geometry, tokens: int, interleaved: bool, where: Path
) -> Iterator[tuple[Key, StageArray]]:
    """Yield the stages that a raw capture holds, each read when it is asked for.

    Args:
        arrays: node -> values.
        geometry: the model's geometry.
        tokens: S.
        interleaved: whether q and k are interleaved rotary pairs (the llama family's GGUF).
        where: the capture, for messages.

    Raises:
        TraceError: the graph was not evaluated on S tokens, or a node has another shape than its stage.

    """
    runs = _evaluations(arrays, where)
    layers = sorted({int(match[1]) for name in arrays if (match := _LAYER_NODE.fullmatch(name))})
    rotary = (Layout.INTERLEAVED,) if interleaved else ()
    for layer in layers:
        for name, values in _projected(arrays, layer, geometry, runs, where).items():
            yield (layer, name), _checked(StageArray(data=values, layout=rotary), name, tokens, where)
    for name in NODES:
        for place in _places(name, layers):
            if (node := _node(arrays, name, place)) is not None:
                found = _of_stage(arrays, node, (place, name), geometry, runs)
                if found is not None:
                    yield (place, name), _checked(found, name, tokens, where)


def _places(name: str, layers: list[int]) -> list[int | None]:
    places: Mapping[Scope, list[int | None]] = {
        Scope.LAYER: [*layers],
        Scope.FIRST_LAYER: [0],
        Scope.MODEL: [None],
    }
    return places[STAGES[name].scope]


def _node(arrays: Arrays, name: str, place: int | None) -> str | None:
    return next((node for pattern in NODES[name] if (node := pattern.format(n=place)) in arrays), None)


def occurrences(arrays: Arrays, name: str) -> list[str]:
    """Return the names of a node's occurrences, in the order of the graph."""
    found: list[str] = []
    while (key := name if not found else f"{name}#{len(found) + 1}") in arrays:
        found.append(key)
    return found


def _evaluations(arrays: Arrays, where: Path) -> int:
    """Return how many times the graph was evaluated: once for each batch that the prompt was run in."""
    layered = sorted({int(match[1]) for name in arrays if (match := _LAYER_NODE.fullmatch(name))})
    counts = {
        node: len(occurrences(arrays, node))
        for name in NODES
        for place in _places(name, layered)
        if (node := _node(arrays, name, place)) is not None
    }
    if len(set(counts.values())) > 1:
        most, least = (choose(counts, key=lambda node: counts[node]) for choose in (max, min))
        raise TraceError(
            f"{most} was recorded {counts[most]} times and {least} {counts[least]} times",
            where=where,
            expected="every node once for each evaluation of the graph",
            remedy="record one run of the prompt from its first batch to its last, and no warm-up",
        )
    return next(iter(counts.values()), 1)


def _of_stage(arrays: Arrays, node: str, key: Key, geometry: Geometry, runs: int) -> StageArray | None:
    """Join a node's evaluations along the tokens and drop ggml's leading axes of 1."""
    layer, name = key
    axes = STAGES[name].axes
    parts = [arrays[key] for key in occurrences(arrays, node)]
    if name in LAYOUT:
        return _square([part[0] for part in parts], LAYOUT[name], runs)
    width = geometry.dims(1)[axes[-1]]
    rows = np.concatenate([part.reshape(-1, width) for part in parts])
    if name == "attention" and layer is not None:
        rows = _turned_back(arrays, node, layer, rows, geometry)
    if axes[0] != "tokens":
        return StageArray(data=rows[-1]) if len(rows) else None
    return StageArray(data=rows)


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


def _projected(arrays: Arrays, layer: int, geometry: Geometry, runs: int, where: Path) -> dict[str, Values]:
    """Return qkv_matmul, qkv_bias and both rotated stages from the nodes Qcur, Kcur and Vcur.

    In an evaluation's order a name's nodes are the product, the sum with the bias where the model has
    one (both [S, width]), a view [S, heads, D], and for q and k the rotated [S, heads, D].
    """
    flat: dict[str, list[Values]] = {}
    rotated: dict[str, Values] = {}
    names = _before_rotation(geometry)
    for letter, heads in (("Q", geometry.heads), ("K", geometry.kv_heads), ("V", geometry.kv_heads)):
        width = heads * geometry.head_dim
        steps = [
            np.concatenate([part.reshape(-1, width) for part in step])
            for step in _steps(arrays, f"{letter}cur-{layer}", runs, where)
        ]
        flat[letter] = steps[: len(names)]
        if letter != "V" and len(steps) > len(names):
            rotated[f"{letter.lower()}_post_rope"] = steps[-1]
    stages = {
        name: np.concatenate([flat[letter][index] for letter in "QKV"], axis=-1)
        for index, name in enumerate(names)
        if all(len(flat[letter]) > index for letter in "QKV")
    }
    return {**stages, **rotated}


def _before_rotation(geometry: Geometry) -> tuple[str, ...]:
    return ("qkv_matmul", "qkv_bias") if geometry.qkv_bias else ("qkv_matmul",)


def _steps(arrays: Arrays, name: str, runs: int, where: Path) -> list[list[Values]]:
    """Return, step by step, the values of each evaluation."""
    found = [arrays[key] for key in occurrences(arrays, name)]
    if len(found) % runs:
        raise TraceError(
            f"{name} was recorded {len(found)} times in {runs} evaluations of the graph",
            where=where,
            expected="as many times in each evaluation",
        )
    count = len(found) // runs
    return [found[step::count] for step in range(count)]


def _turned_back(arrays: Arrays, node: str, layer: int, rows: Values, geometry: Geometry) -> Values:
    """Undo the rotation in which a quantised V cache is kept, where a recording holds its result in it.

    With one key to look at, the first token's attention is its V: turned, where the values are.
    """
    dims = geometry.head_dim
    steps = occurrences(arrays, f"Vcur-{layer}")[: len(_before_rotation(geometry))]
    if f"kq-{layer}" in arrays or not node.startswith("kqv_out") or not steps or dims & (dims - 1):
        return rows
    values = arrays[steps[-1]].reshape(-1, geometry.kv_heads, dims)[0]
    first = np.repeat(values, geometry.heads // geometry.kv_heads, axis=0)
    seen = rows[0].reshape(-1, dims)
    if _distance(seen, first) < FAR or _distance(seen, first @ hadamard(dims)) > NEAR:
        return rows
    back: Values = (rows.reshape(-1, dims) @ hadamard(dims)).astype(np.float32)
    return back.reshape(rows.shape)


def _distance(found: Values, expected: Values) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
