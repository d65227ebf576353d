"""Recordings of latent attention, whose heads of v are of another width: read however their axes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import FindingType, Kind
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.operators.heads import head_size, parts
from tests.unit.oracle.conftest import OpenCheckpoint, checkpoint
from tests.unit.subjects.pass_dumps import end_to_end, hf_run, judged, mapping_of

__all__ = ["checkpoint"]

S = 7
HEADS_FIRST = {
    "q_post_rope": ["heads", "tokens", "head_dim"],
    "k_post_rope": ["kv_heads", "tokens", "head_dim"],
    "attention": ["heads", "tokens", "head_dim"],
}
PARTS = tuple([heads, "tokens", "head_dim"] for heads in ("heads", "kv_heads", "kv_heads"))


def heads_first(values: np.ndarray, width: int) -> np.ndarray:
    return np.ascontiguousarray(values.reshape(len(values), -1, width).swapaxes(0, 1))


@pytest.mark.parametrize("apart", [False, True], ids=["joined", "apart"])
@pytest.mark.parametrize("recipe", ["deepseek_v2", "youtu-direct-untied-one-width"])
def test_heads_of_two_widths_are_read(
    recipe: str, apart: bool, checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    model = checkpoint(recipe)
    geometry, oracle = model.geometry, hf_run(model, Passes.whole(S))
    arrays, said = end_to_end(oracle), mapping_of(oracle)
    if apart:
        for layer in range(geometry.layers):
            for stage in HEADS_FIRST:
                width = head_size("v" if stage == "attention" else "q", geometry)
                arrays[f"L{layer}.{stage}"] = heads_first(arrays[f"L{layer}.{stage}"], width)
            joined = arrays.pop(f"L{layer}.qkv_matmul")
            for part, columns in parts(geometry).items():
                arrays[f"L{layer}.{part}"] = heads_first(joined[:, columns], head_size(part, geometry))
        stages: dict[str, Any] = said["stages"]
        for stage, axes in HEADS_FIRST.items():
            stages[stage] = {"from": f"L{{layer}}.{stage}", "axes": axes}
        names = [f"L{{layer}}.{part}" for part in "qkv"]
        stages["qkv_matmul"] = {"from": names, "axes": list(PARTS)}
    found = judged(tmp_path / "recording", model, arrays, said, oracle)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    assert {row.stage for row in found.rows if row.excess is not None} >= {"qkv_matmul", "attention", "kv_up"}


def test_attention_of_another_width_than_the_models_is_refused(
    checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    from apr_falsify.errors import TraceError

    model = checkpoint("deepseek_v2")
    oracle = hf_run(model, Passes.whole(S))
    arrays, said = end_to_end(oracle), mapping_of(oracle)
    wide = np.zeros((model.geometry.heads, S, model.geometry.head_dim), np.float32)
    arrays["L0.attention"] = wide
    said["stages"]["attention"] = {"from": "L0.attention", "axes": HEADS_FIRST["attention"]}
    with pytest.raises(TraceError, match="has the shape"):
        judged(tmp_path / "recording", model, arrays, {**said, "layer": 0}, oracle)


def rotary_first(values: np.ndarray, stage: str, model: Model) -> np.ndarray:
    geometry = model.geometry
    end = parts(geometry)["k"].stop if stage == "qkv_matmul" else values.shape[1]
    heads = values[:, :end].reshape(len(values), -1, geometry.head_dim)
    rolled = np.roll(heads, geometry.dims(1)["rotary"], axis=-1).reshape(len(values), -1)
    return np.concatenate((rolled, values[:, end:]), axis=1)


def side_by_side(values: np.ndarray, stage: str, model: Model) -> np.ndarray:
    """Return half-split rotary pairs as (0, 1), (2, 3) ..., as the checkpoint holds them."""
    geometry = model.geometry
    rotary = geometry.dims(1)["rotary"]
    end = parts(geometry)["k"].stop if stage == "qkv_matmul" else values.shape[1]
    size = rotary if stage.startswith("k_s") or stage == "k_rope" else geometry.head_dim
    heads = np.array(values[:, :end].reshape(len(values), -1, size))
    heads[..., -rotary:] = np.stack(np.split(heads[..., -rotary:], 2, axis=-1), axis=-1).reshape(
        *heads.shape[:2], rotary
    )
    return np.concatenate((heads.reshape(len(values), -1), values[:, end:]), axis=1)


ORDERS = {
    "rotated channels first after RoPE": (rotary_first, ("q_post_rope", "k_post_rope"), "rotary-first"),
    "rotated channels first in q and k": (
        rotary_first,
        ("q_up", "qkv_matmul", "q_post_rope", "k_post_rope"),
        "rotary-first",
    ),
    "rotary pairs interleaved before RoPE": (
        side_by_side,
        ("q_up", "k_shared", "qkv_matmul"),
        "interleaved",
    ),
    "rotary pairs interleaved in q and k": (
        side_by_side,
        ("q_up", "k_shared", "qkv_matmul", "q_post_rope", "k_post_rope", "k_rope"),
        "interleaved",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_channels_in_another_order_are_a_layout_and_once_declared_nothing(
    name: str, checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    change, stages, word = ORDERS[name]
    model = checkpoint("deepseek_v3")
    oracle = hf_run(model, Passes.whole(S))
    arrays, said = end_to_end(oracle), mapping_of(oracle)
    for layer, stage in oracle.stages:
        if stage in stages:
            arrays[f"L{layer}.{stage}"] = change(arrays[f"L{layer}.{stage}"], stage, model)
    found = judged(tmp_path / "undeclared", model, arrays, said, oracle)
    assert found.kind is Kind.LAYOUT_MISMATCH
    assert [(each.type, name in each.explanation) for each in found.findings] == [(FindingType.LAYOUT, True)]

    for stage in stages:
        said["stages"][stage]["layout"] = [word]
    declared = judged(tmp_path / "declared", model, arrays, said, oracle)
    assert (declared.kind, declared.findings) == (Kind.CONSISTENT, ())
