"""Programs that are run here and wired by replay: a right one is consistent, a wrong one located."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import apr_falsify as af
from apr_falsify.compare.bisection import Kind
from apr_falsify.errors import AprFalsifyError
from tests.acceptance.programs import TINY, assert_refused, run
from tests.subjects.fake_apr import TOKENS
from tests.subjects.ports import BUILT, onnx_port
from tests.support import machine_paths_in

LAYERS = range(0, 3)


def sources(result: af.Bisection) -> set[tuple[int | None, tuple[str, ...]]]:
    return {(finding.layer, finding.stages) for finding in result.sources}


SILU = {(layer, ("ffn_silu",)) for layer in LAYERS}


def test_a_module_of_torch_is_captured_by_the_command(tmp_path: Path) -> None:
    where = ("--tokens", ",".join(map(str, TOKENS)), "--out", tmp_path / "trace", "--layers", "1..2")
    outcome = run("capture", f"torch:{BUILT}:by_transformers", TINY, *where)
    assert outcome.code == 0, outcome
    said = (tmp_path / "trace" / "trace.json").read_text()
    assert json.loads(said)["provenance"]["runtime"] == "torch"
    assert machine_paths_in(tmp_path / "trace", tmp_path) == {}


REFUSED = {
    "nothing-named": (f"torch:{BUILT}", "no function is named"),
    "no-function": (f"torch:{BUILT}:wright", "did you mean 'right'"),
    "no-file": ("torch:nowhere.py:right", "no such file"),
    "raises": (f"torch:{BUILT}:raises", r"built_port.py:\d+: raises.. raised RuntimeError: out of luck"),
    "no-module": (f"torch:{BUILT}:none", "no module of torch"),
    "onnx-no-file": ("onnx:nowhere.onnx", "no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_program_is_a_typed_error(case: str) -> None:
    spec, said = REFUSED[case]
    with pytest.raises(AprFalsifyError) as caught:
        af.bisect(TINY, spec, tokens=TOKENS)
    assert re.search(said, str(caught.value))
    assert caught.value.expected


def test_a_program_without_the_model_that_it_should_be_is_refused(tmp_path: Path) -> None:
    side = f"torch:{BUILT}:right"
    assert_refused(run("bisect", "--subject", side), "--oracle MODEL")
    assert_refused(run("capture", side, "--out", tmp_path / "trace", "--tokens", "1,2"), "--oracle MODEL")


def test_a_decoder_in_onnx_runtime_is_run_and_judged(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="onnx and onnxruntime are not installed")
    right = af.bisect(TINY, f"onnx:{onnx_port(tmp_path)}", tokens=TOKENS, layers=LAYERS)
    assert (right.kind, right.sources) == (Kind.CONSISTENT, ())
    assert sum(row.accumulated is not None for row in right.rows) > 15 * len(LAYERS)
    (tmp_path / "wrong").mkdir()
    file = onnx_port(tmp_path / "wrong", right=False)
    assert sources(af.bisect(TINY, f"onnx:{file}", tokens=TOKENS, layers=LAYERS)) == SILU
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(AprFalsifyError, match="does not run it"):
        af.bisect(TINY, f"onnx:{file}", tokens=TOKENS)
