"""Recordings of latent attention, whose heads of v are of another width: read however their axes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import Kind
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
