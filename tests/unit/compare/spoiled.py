"""Runs of the embedded runtime in which one stage is spoiled, and all that follows is computed from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import APR_STAGES, STAGES, Key
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite, arithmetic_named
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace

Values = npt.NDArray[Any]
Change = Callable[[Values], Values]


def request_of(model: Model, tokens: int = 9, layers: int | None = None) -> Request:
    """Ask for every stage of the first layers, on random tokens."""
    drawn = np.random.default_rng(tokens).integers(1, model.geometry.vocab, tokens)
    chosen = range(model.geometry.layers if layers is None else layers)
    return Request(tokens=tuple(map(int, drawn)), layers=chosen, stages=SHOWN)


SHOWN = tuple(name for name in STAGES if name in APR_STAGES or STAGES[name].composed)
"""The stages of every model, and those without which others of its kind cannot be judged sharply."""


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


def _with(at: Any, change: Change) -> Change:
    def changed(x: Values) -> Values:
        x[at] = change(x[at])
        return x

    return changed


def _first_head(x: Values) -> Values:
    head = (0,) if x.ndim == 3 else np.s_[..., : max(1, x.shape[-1] // 4)]
    return _with(head, lambda values: values * 1.25)(x)


def _noisy(x: Values) -> Values:
    return x * np.random.default_rng(1).normal(1, 0.01, x.shape)


SPOILS: Mapping[str, Change] = {
    "a factor": lambda x: x * 1.37,
    "a factor near 1": lambda x: x * 1.0001,
    "a channel": _with(np.s_[..., 1], lambda values: values * 1.5 + 0.1),
    "a head": _first_head,
    "the last row": _with(np.s_[-1], lambda values: values * 1.2 + 0.05),
    "a NaN": _with(np.s_[..., 1], lambda values: values * np.nan),
    "NaN": lambda x: x * np.nan,
    "an infinity": _with(np.s_[..., 1], lambda values: np.full_like(values, np.inf)),
    "minus infinity": lambda x: np.full_like(x, -np.inf),
    "zeros": lambda x: x * 0,
    "tokens in reverse": lambda x: x[::-1],
    "tokens moved on": lambda x: np.roll(x, 1, axis=-1 if x.ndim == 1 else -2),
    "a constant": lambda x: np.full_like(x, 0.5),
    "noise": _noisy,
}
"""What may become of any stage; not what is near the end of f32, where the runtime itself overflows."""
