"""``bisect --subject apr:`` with the real binary on a checkpoint whose gates leave the range of f32's exp."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.formats.aprt import read_aprt
from tests.acceptance.programs import TINY, run

APR = shutil.which("apr")
pytestmark = [pytest.mark.real_apr, pytest.mark.skipif(APR is None, reason="no apr binary on PATH")]


@pytest.fixture
def large_gates(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if "gate_proj" in name:
            weights[name] = (weight * np.float32(45)).astype(weight.dtype)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_silu_of_gates_of_which_exp_overflows_is_right_in_apr_and_in_the_oracle(
    large_gates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "run"
    arguments = ("--oracle", large_gates, "--subject", f"apr:{large_gates}", "--layers", "0..3")
    outcome = run("bisect", *arguments, "--out", place, "--format", "json")
    found = outcome.json
    assert (found["kind"], [each["type"] for each in found["findings"]]) == ("consistent", ["tokenizer"])
    gates = [read_aprt(place / "subject" / f"layer-{layer}" / "ffn_gate.bin").values for layer in range(3)]
    silus = [read_aprt(place / "subject" / f"layer-{layer}" / "ffn_silu.bin").values for layer in range(3)]
    lost = [(gate < -88.73) & (gate > -90) & (silu == 0) for gate, silu in zip(gates, silus, strict=True)]
    # silu(-89) is -2e-37, a normal number of f32: apr gives 0, since exp(89) is infinite.
    assert sum(int(np.count_nonzero(where)) for where in lost) > 0
