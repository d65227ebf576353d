"""Requests that several tests of the oracle make."""

from __future__ import annotations

import numpy as np

from apr_falsify.capture import Request
from apr_falsify.stages import STAGES
from apr_falsify.weights import Model


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
