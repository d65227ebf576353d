"""The handed port of a mixture of experts, from file to exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.test_right_ports import accused, bisected
from tests.support import REAL_VARIABLE, real_folder


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
def test_the_handed_softmax_after_the_choice_is_located_and_named(tmp_path: Path) -> None:
    real = real_folder()
    assert real is not None
    folder = real / "field" / "moe-topk-softmax"
    found = bisected(folder / "model", folder / "topk-softmax.npz", tmp_path)
    assert accused(found) == {(0, "moe_router"), (1, "moe_router")}
    assert (found.json["kind"], found.code) == ("localised", 1)
    assert {each["cause"]["name"] for each in found.json["sources"]} == {"top-k-normalisation"}
    assert "softmax over the logits of the chosen experts alone" in found.json["sources"][0]["explanation"]
    right = bisected(folder / "model", folder / "good.npz", tmp_path / "right")
    assert (right.json["kind"], right.code, right.json["findings"]) == ("consistent", 0, [])
