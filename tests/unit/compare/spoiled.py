"""Runs of the embedded runtime in which one stage is spoiled, and all that follows is computed from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.capture import MemorySink, Request
from apr_falsify.ops import Array, Inputs
from apr_falsify.stages import STAGES
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite, arithmetic_named
from apr_falsify.trace import Key, Trace
from apr_falsify.weights import Model

Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def request_of(model: Model, tokens: int = 9, layers: int | None = None) -> Request:
    """Ask for every stage of the first layers, on random tokens."""
    drawn = np.random.default_rng(tokens).integers(1, model.geometry.vocab, tokens)
    chosen = range(model.geometry.layers if layers is None else layers)
    return Request(tokens=tuple(map(int, drawn)), layers=chosen, stages=tuple(STAGES))


def spoiled_run(model: Model, request: Request, spoils: dict[Key, Change], arithmetic: str = "f32") -> Trace:
    """Run ``model``, with some stages changed as soon as they are computed."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        made = as_defined(key, inputs, site)
        if key not in spoils:
            return made
        with np.errstate(all="ignore"):
            return np.asarray(spoils[key](np.array(made)), dtype=made.dtype)

    with np.errstate(all="ignore"):
        return capture(model, request, MemorySink(), arithmetic=arithmetic_named(arithmetic), step=step)
