"""Ports that are right in a way of their own, made of transformers' runs of small random checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key, Layout
from apr_falsify.oracle.capture import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import StageArray, Trace
from tests.checkpoints import make_checkpoint
from tests.unit.oracle.requests import request_for

Array = npt.NDArray[Any]
TOKENS = 14
EVERY = (0, 1, 2)
"""The layers of every checkpoint."""


class Runs(dict[str, tuple[Model, Trace]]):
    """Recipe -> its checkpoint in f32, and transformers' run of it, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> tuple[Model, Trace]:
        model = open_model(make_checkpoint(self.folder / name, name))
        self[name] = model, capture(model, request_for(model, tokens=TOKENS), MemorySink())
        return self[name]


def port(run: Trace, stages: Mapping[Key, StageArray] | None = None, **said: Any) -> Trace:
    """Return the run as that of a port of which nothing is known but what is ``said``."""
    known = replace(run.provenance, **{"runtime": "port", "arithmetic": "unknown", **said})
    return replace(run, provenance=known, stages={**run.stages, **(stages or {})})


def changed(
    run: Trace, name: str, change: Callable[[Array, int], Array], *layout: Layout
) -> dict[Key, StageArray]:
    """Return stage ``name`` of every layer, changed; ``change`` takes the values and the layer."""
    return {
        key: StageArray(
            data=np.asarray(change(np.array(array.data), key[0] or 0)), layout=(*array.layout, *layout)
        )
        for key, array in run.stages.items()
        if key[1] == name
    }


def judged(model: Model, run: Trace, subject: Trace) -> Bisection:
    return bisect(run, subject, weights=model.weights)


def accused(found: Bisection) -> set[Key]:
    return {(finding.layer, name) for finding in found.sources for name in finding.stages}


def columns_of(geometry: Geometry, name: str, roles: str) -> slice:
    q, k = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    whole = {"q_post_rope": slice(0, q), "k_post_rope": slice(0, k)}
    return whole.get(name, {"q": slice(0, q), "qk": slice(0, q + k)}[roles])


def folded(
    run: Trace, names: tuple[str, ...], roles: str, factor: Callable[[int], float]
) -> dict[Key, StageArray]:
    """Return ``names`` times a factor of their layer, in the columns of q, or of q and k."""

    def change(name: str) -> Callable[[Array, int], Array]:
        columns = columns_of(run.geometry, name, roles)

        def multiplied(x: Array, layer: int) -> Array:
            x[:, columns] *= np.float32(factor(layer))
            return x

        return multiplied

    return {key: array for name in names for key, array in changed(run, name, change(name)).items()}


Q, QK = ("q_post_rope",), ("q_post_rope", "k_post_rope")
FOLDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "into q": (Q, "q", "scaled"),
    "into k": (("k_post_rope",), "q", "scaled"),
    "its root into q and k": (QK, "qk", "root-scaled"),
    "into the weights of q": (("qkv_matmul", "qkv_bias", *Q), "q", "scaled"),
    "its root into the weights of q and k": (("qkv_matmul", "qkv_bias", *QK), "qk", "root-scaled"),
    "into q with its bias": (("qkv_bias", *Q), "q", "scaled"),
    "1/sqrt(D) of it into q": (Q, "q", "head-scaled"),
    "over the soft-cap into q": (Q, "q", "cap-scaled"),
}
"""Way -> the stages, the columns of q|k|v, the layout word."""


def factor_of(model: Model, word: str) -> Callable[[int], float]:
    geometry = model.geometry
    return {
        "scaled": lambda layer: geometry.attn_scale_at(layer),
        "root-scaled": lambda layer: math.sqrt(geometry.attn_scale_at(layer)),
        "head-scaled": lambda layer: geometry.head_dim**-0.5,
        "cap-scaled": lambda layer: geometry.attn_scale_at(layer) / (geometry.attn_softcap or 1.0),
    }[word]


def fold(model: Model, run: Trace, way: str) -> dict[Key, StageArray]:
    names, roles, word = FOLDS[way]
    held = tuple(name for name in names if (0, name) in run.stages)
    return folded(run, held, roles, factor_of(model, word))
