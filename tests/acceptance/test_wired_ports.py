"""Public runtimes' recordings without their mapping: wired by replay, and only the faulty located."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apr_falsify.model.stages import Key
from tests.acceptance.programs import run
from tests.sampling import one_in
from tests.support import REAL_VARIABLE, real_folder

HANDED = {
    "moe-topk-softmax": (
        "field/moe-topk-softmax/topk-softmax.npz",
        "field/moe-topk-softmax/model",
        {Key(0, "moe_router"), Key(1, "moe_router")},
    ),
    "onnx-early-qwen2": ("runtimes/onnx-early-qwen2/t.npz", "runtimes/models/qwen2", {Key(0, "qkv_bias")}),
    "transformers-eager-gemma2": (
        "runtimes/transformers-eager-gemma2/t.npz",
        "runtimes/models/gemma2",
        set(),
    ),
    "moe-right": ("field/moe-topk-softmax/good.npz", "field/moe-topk-softmax/model", set()),
    "keras-gemma2": (
        "runtimes/keras-gemma2/t.npz",
        "runtimes/models/gemma2",
        {Key(layer, "attn_scores") for layer in range(4)},
    ),
}
"""Case -> recording, model, the stages that are wrong: a zeroed bias, a bad proposal, another scale."""


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
@pytest.mark.parametrize("case", one_in(2, HANDED))
def test_a_handed_recording_without_its_mapping_is_located_or_accused_of_nothing(
    case: str, tmp_path: Path
) -> None:
    real = real_folder()
    assert real is not None
    recording, model, truth = HANDED[case]
    shutil.copy(real / recording, tmp_path / "arrays.npz")
    where = ("--oracle", real / model, "--subject", f"recorded:{tmp_path / 'arrays.npz'}")
    said = run("bisect", *where, "--format", "json").json
    accused = {Key(one["layer"], name) for one in said["sources"] for name in one["stages"]}
    assert accused == truth
    assert any("wired by replay" in line for line in said["not_checked"])
