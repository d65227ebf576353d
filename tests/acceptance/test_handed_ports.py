"""Ports with a bug that people reported, each handed with its truth: located where it is, and named."""

from __future__ import annotations

import json

import pytest

from apr_falsify.model.stages import Key
from tests.acceptance.programs import Outcome, run
from tests.support import REAL_VARIABLE, real_folder

NAMED = {
    "gemma2-no-softcap": "soft-cap",
    "gemma3-norm-plus-two": "norm",
    "gpt2-eps": "epsilon",
    "llama3-factor": "rope-scaling",
    "moe-topk-softmax": "top-k-normalisation",
    "phi3-full-rotary": "rope-partial",
}
"""Case of one pass without padding, with the checkpoint's weights -> what its causes are called, in part."""


def bisected(case: str, recording: str, out: object) -> Outcome:
    real = real_folder()
    assert real is not None
    folder = real / "field" / case
    where = ("--oracle", folder / "model", "--subject", f"recorded:{folder / recording}")
    return run("bisect", *where, "--out", out, "--format", "json")


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
@pytest.mark.parametrize("case", NAMED)
def test_a_handed_port_is_located_and_named_and_its_right_twin_is_consistent(
    case: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    real = real_folder()
    assert real is not None
    said = json.loads((real / "field" / case / "expected.json").read_text())
    wrong = bisected(case, said["bad"], tmp_path_factory.mktemp("wrong")).json
    accused = {Key(one["layer"], name) for one in wrong["sources"] for name in one["stages"]}
    assert accused == {Key(layer if layer != "" else None, name) for layer, name in said["truth"]}
    causes = [one["cause"]["name"] if one.get("cause") else None for one in wrong["sources"]]
    assert all(cause is not None and NAMED[case] in cause for cause in causes), causes
    right = bisected(case, said["good"], tmp_path_factory.mktemp("right"))
    assert (right.json["kind"], right.json["findings"], right.code) == ("consistent", [], 0)
