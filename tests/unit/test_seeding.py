"""Faults are seeded where they are meant to be, in every family's own way to store its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from apr_falsify.exam.seeding.tensors import Bench, as_stored
from apr_falsify.formats.weights import open_model
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.support import DATA

ROLES = ("embed", "q", "k", "v", "q_bias", "q_norm", "attn_norm", "o", "up", "gate", "down", "router")


@pytest.mark.parametrize("recipe", FAMILIES)
def test_a_changed_tensor_is_stored_as_the_family_stores_it(recipe: str, tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", recipe))
    held = load_file(tmp_path / "model" / "model.safetensors")
    for role in ROLES:
        layer = None if role == "embed" else 1
        if model.weights.find(role, layer) is None:
            continue
        sound = Bench(weights=model.weights, layer=layer, seed=0).get(role)
        changed = sound.copy()
        changed[(3,) * changed.ndim] += 1
        ((name, stored),) = as_stored(model.weights, {(role, layer): changed}).items()
        ((_, untouched),) = as_stored(model.weights, {(role, layer): sound}).items()

        np.testing.assert_allclose(untouched, held[name], atol=2e-7)  # a norm's offset is added and taken off
        off = np.abs(stored - held[name]) > 0.5
        assert np.count_nonzero(off) == 1, role


def test_parts_of_one_tensor_are_changed_together(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", "phi3"))
    bench = Bench(weights=model.weights, layer=1, seed=0)
    ((_, stored),) = as_stored(
        model.weights, {("q", 1): 0 * bench.get("q"), ("v", 1): 0 * bench.get("v")}
    ).items()

    dims = model.geometry.dims(1)
    rows = np.flatnonzero(np.any(stored != 0, axis=1))
    np.testing.assert_array_equal(rows, np.arange(dims["q"], dims["q"] + dims["kv"]))


def test_a_tensor_of_a_gguf_file_has_the_name_that_it_has_in_torch() -> None:
    model = open_model(DATA / "apr-tiny-qwen2" / "base-q4k.gguf")
    bias = Bench(weights=model.weights, layer=1, seed=0).get("k_bias")
    ((name, stored),) = as_stored(model.weights, {("k_bias", 1): 0 * bias}).items()
    assert name == "model.layers.1.self_attn.k_proj.bias"
    assert not stored.any()
