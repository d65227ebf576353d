"""Experts are read when a token is given to them, and what they then make is what it always was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apr_falsify.errors import ModelError
from apr_falsify.model.stages import Key
from apr_falsify.oracle import experts, loading
from apr_falsify.oracle.capture import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.unit.oracle.conftest import OpenCheckpoint
from tests.unit.oracle.requests import request_for

RECIPE = "qwen3_moe"


def captured(checkpoint: OpenCheckpoint, dtype: str) -> Trace:
    model = checkpoint(RECIPE)
    return capture(model, request_for(model, tokens=2), MemorySink(), dtype=dtype)


def test_no_expert_is_read_but_those_that_were_chosen(
    checkpoint: OpenCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[tuple[int, int]] = set()
    reads = experts.ReadOneByOne.__getitem__

    def seen(reader: experts.ReadOneByOne, expert: Any) -> object:
        read.add((reader.layer, int(expert)))
        return reads(reader, expert)

    monkeypatch.setattr(experts.ReadOneByOne, "__getitem__", seen)
    trace = captured(checkpoint, "f32")
    layers = [layer for layer in range(trace.geometry.layers) if trace.geometry.is_mixture(layer)]
    chosen = {
        (layer, int(expert))
        for layer in layers
        for expert in np.flatnonzero(trace.stages[Key(layer, "router_weights")].data.any(axis=0))
    }
    assert read == chosen
    assert len(chosen) < len(layers) * trace.geometry.experts


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-6), ("bf16", 1e-2)])
def test_the_stages_are_those_of_all_experts_loaded_at_once(
    dtype: str, tolerance: float, checkpoint: OpenCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = captured(checkpoint, dtype)
    monkeypatch.setattr(loading, "read_one_by_one", lambda model: False)
    at_once = captured(checkpoint, dtype)
    assert one_by_one.stages.keys() == at_once.stages.keys()
    for key, array in one_by_one.stages.items():
        far = np.linalg.norm(array.data - at_once.stages[key].data)
        assert far <= tolerance * np.linalg.norm(array.data), key


def test_another_form_of_experts_in_transformers_is_refused_by_name(
    checkpoint: OpenCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "stand_ins", lambda model, layers, dtype: iter(()))
    with pytest.raises(ModelError, match="holds the experts of layer 0 otherwise"):
        captured(checkpoint, "f32")
