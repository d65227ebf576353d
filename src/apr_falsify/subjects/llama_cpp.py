"""llama.cpp: the tensors of its compute graph, as its eval callback hands them out.

A raw capture is an ``.npz``: each array named as the node in the graph (``Qcur-0``), the second and
third node of one name with ``#2`` and ``#3``; ggml's axes reversed, so that the last axis is contiguous.
``token_ids`` holds the ids that were run.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.provenance import Provenance, utc_now
from apr_falsify.stages import STAGES, Layout, Scope
from apr_falsify.subjects.adoption import adopted_geometry, adopted_tokens, verify_tokens
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.trace import Key, StageArray, Trace

Arrays = Mapping[str, npt.NDArray[Any]]

NODES: Mapping[str, str] = {
    "embedding": "embd",
    "attn_norm": "attn_norm-{n}",
    "attn_scores": "kq-{n}",
    "attn_softmax": "kq_soft_max-{n}",
    "attention": "kqv_out-{n}",
    "attn_out": "attn_out-{n}",
    "post_attn_residual": "ffn_inp-{n}",
    "ffn_norm": "ffn_norm-{n}",
    "ffn_gate": "ffn_gate-{n}",
    "ffn_up": "ffn_up-{n}",
    "ffn_swigl": "ffn_swiglu-{n}",
    "ffn_out": "ffn_out-{n}",
    "post_ffn_residual": "l_out-{n}",
    "final_norm": "result_norm",
    "lm_head": "result_output",
}
"""Stage -> node; q, k and v have several nodes of one name and are read by :func:`_qkv`."""

LAYOUT: Mapping[str, tuple[Layout, ...]] = {
    "attn_scores": (Layout.UNSCALED, Layout.PADDED_KEYS),
    "attn_softmax": (Layout.PADDED_KEYS,),
}
"""How llama.cpp stores a stage; the scale is applied inside its softmax."""

_LAYER_NODE = re.compile(r"[A-Za-z_]+-(\d+)")


def read_capture(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a raw capture.

    Raises:
        TraceError: not an ``.npz`` of plain arrays.

    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(
            f"not a capture of llama.cpp's graph: {error}", where=path, expected="an .npz of plain arrays"
        ) from error


def stages_of_capture(
    arrays: Arrays, geometry: Geometry, tokens: int, interleaved: bool
) -> Iterator[tuple[Key, StageArray]]:
    """Yield the stages that a raw capture holds.

    Args:
        arrays: node -> values.
        geometry: the model's geometry.
        tokens: S.
        interleaved: whether q and k are interleaved rotary pairs (the llama family's GGUF).

    """
    layers = sorted({int(match[1]) for name in arrays if (match := _LAYER_NODE.fullmatch(name))})
    rotary = (Layout.INTERLEAVED,) if interleaved else ()
    for layer in layers:
        for name, values in _qkv(arrays, layer, geometry).items():
            yield (layer, name), StageArray(data=values, layout=rotary)
    for name, node in NODES.items():
        scope = STAGES[name].scope
        places: dict[Scope, list[int | None]] = {
            Scope.LAYER: [*layers],
            Scope.FIRST_LAYER: [0],
            Scope.MODEL: [None],
        }
        for place in places[scope]:
            if (found := arrays.get(node.format(n=place))) is not None:
                yield (place, name), _stage(name, found, tokens)


def _stage(name: str, values: npt.NDArray[Any], tokens: int) -> StageArray:
    """Drop ggml's leading axes of 1; a row for one token of several is the last one."""
    axes = STAGES[name].axes
    trimmed = values.reshape(values.shape[-len(axes) :])
    layout = LAYOUT.get(name, ())
    if axes[0] == "tokens" and len(trimmed) == 1 and tokens > 1:
        return StageArray(data=trimmed[0], layout=(*layout, Layout.LAST_TOKEN))
    return StageArray(data=trimmed, layout=layout)


def _qkv(arrays: Arrays, layer: int, geometry: Geometry) -> dict[str, npt.NDArray[Any]]:
    """Return qkv_matmul, qkv_bias and both rotated stages from the nodes Qcur, Kcur and Vcur.

    In the graph's order a name's nodes are the product, the sum with the bias where the model has
    one (both [S, width]), a view [S, heads, D], and for q and k the rotated [S, heads, D].
    """
    flat: dict[str, list[npt.NDArray[Any]]] = {}
    rotated: dict[str, npt.NDArray[Any]] = {}
    for letter in "QKV":
        nodes = list(_occurrences(arrays, f"{letter}cur-{layer}"))
        flat[letter] = [values.reshape(values.shape[-2:]) for values in nodes if values.shape[1] == 1]
        headed = [values for values in nodes if values.shape[1] != 1]
        if letter != "V" and len(headed) > 1:
            rotated[f"{letter.lower()}_post_rope"] = headed[-1].reshape(headed[-1].shape[1], -1)
    names = ("qkv_matmul", "qkv_bias") if geometry.qkv_bias else ("qkv_matmul",)
    stages = {
        name: np.concatenate([flat[letter][index] for letter in "QKV"], axis=-1)
        for index, name in enumerate(names)
        if all(len(flat[letter]) > index for letter in "QKV")
    }
    return {**stages, **rotated}


def _occurrences(arrays: Arrays, name: str) -> Iterator[npt.NDArray[Any]]:
    count = 1
    while (key := name if count == 1 else f"{name}#{count}") in arrays:
        yield arrays[key]
        count += 1


def open_llama_cpp(target: Target) -> RecordedSubject:
    """Open the raw capture at ``target``.

    Raises:
        TraceError: not a capture, or nothing says which model was run.
        TokensError: the token ids are missing or not those of the capture.

    """
    arrays = read_capture(target.path)
    geometry, interleaved = adopted_geometry(target)
    embedded = arrays.get(NODES["embedding"])
    rows = None if embedded is None else embedded.reshape(embedded.shape[-2:])
    tokens = _tokens(target, arrays, rows, geometry)
    verified = verify_tokens(target, rows, tokens)
    stages = dict(stages_of_capture(arrays, geometry, len(tokens), interleaved))
    if not stages:
        raise TraceError("no node of it is a stage", where=target.path, expected=", ".join(NODES.values()))
    trace = Trace(
        provenance=Provenance(
            runtime="llama-cpp",
            driver=f"apr-falsify {__version__} (recorded)",
            model="" if target.model is None else str(target.model.path),
            created=utc_now(),
        ),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verified,
    )
    return RecordedSubject(trace=trace)


def _tokens(
    target: Target, arrays: Arrays, rows: npt.NDArray[Any] | None, geometry: Geometry
) -> tuple[int, ...]:
    recorded = arrays.get("token_ids")
    if recorded is None:
        return adopted_tokens(target, rows, geometry)
    ids = tuple(int(token) for token in recorded.reshape(-1))
    if target.tokens not in (None, ids):
        raise TokensError(
            "--tokens are not those of the capture", where=target.path, expected=f"{list(ids)}, its token_ids"
        )
    return ids
