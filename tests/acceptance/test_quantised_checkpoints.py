"""Quantised weights from the command line: the handed ports, and a quantised folder as oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_falsify.model.stages import Key
from tests.acceptance.programs import assert_refused, run
from tests.support import REAL_VARIABLE, real_folder
from tests.unit.helpers import model_directory
from tests.unit.quantised_files import changed, quantise_checkpoint

WIDE = {"hidden_size": 64, "intermediate_size": 96}


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
def test_a_gptq_zero_point_off_by_one_is_named_and_its_right_twin_is_clean() -> None:
    real = real_folder()
    assert real is not None
    folder = real / "field" / "gptq-zero"
    said = json.loads((folder / "expected.json").read_text())
    right, wrong = (
        run("bisect", "--oracle", folder / said["oracle"], "--subject", f"recorded:{folder / said[twin]}",
            "--format", "json")
        for twin in ("good", "bad")
    )  # fmt: skip
    assert (right.json["kind"], right.code, right.json["findings"]) == ("consistent", 0, [])
    accused = {Key(one["layer"], name) for one in wrong.json["sources"] for name in one["stages"]}
    assert accused == {Key(layer, name) for layer, name in said["truth"]}
    assert (wrong.json["kind"], wrong.code) == ("localised", 1)
    (cause,) = wrong.json["causes"]
    assert (cause["name"], cause["says"]) == ("zero-point", "zero points that are one larger")


def test_a_quantised_folder_runs_as_oracle_and_as_subject(tmp_path: Path) -> None:
    plain = model_directory(tmp_path / "plain", **WIDE)
    quantise_checkpoint(
        plain, tmp_path / "gptq", "gptq", {"group_size": 32, "desc_act": True}, act_order=True
    )
    found = run("bisect", "--oracle", tmp_path / "gptq", "--tokens", "1,2,3,4,5", "--layers", "0..2",
                "--format", "json")  # fmt: skip
    assert (found.json["kind"], found.code) == ("consistent", 0)
    products = {row["stage"]: row["arithmetic"] for row in found.json["stages"]}
    assert products["ffn_up"] == "int4 x f32"
    changed(tmp_path / "gptq", "model.layers.1.mlp.up_proj.scales", None)
    refused = run("bisect", "--oracle", tmp_path / "gptq", "--tokens", "1,2,3")
    assert_refused(refused, "model.layers.1.mlp.up_proj.scales is missing")
