"""Requests that several tests of the oracle make."""

from __future__ import annotations

import numpy as np

from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES
from apr_falsify.traces.capture import Request


def request_for(
    model: Model, *, tokens: int = 9, layers: range | None = None, stages: tuple[str, ...] = tuple(STAGES)
) -> Request:
    """Return a request for ``stages`` of all or some layers on random tokens."""
    ids = np.random.default_rng(tokens).integers(0, model.geometry.vocab, tokens)
    return Request(
        tokens=tuple(int(token) for token in ids),
        layers=range(model.geometry.layers) if layers is None else layers,
        stages=stages,
    )
