"""Requests that several tests of the oracle make."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers

from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.loading import EAGER
from apr_falsify.traces.capture import Request


def plain_model(model: Model, **words: Any) -> Any:
    """Return a model as transformers alone loads it: a text model's, the larger one whole."""
    config = transformers.AutoConfig.from_pretrained(model.path)
    alone = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kind = transformers.AutoModelForCausalLM if alone else transformers.AutoModelForImageTextToText
    return kind.from_pretrained(model.path, **EAGER, **words)


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
