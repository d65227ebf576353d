"""Programs that are run here and wired by replay: a right one is consistent, a wrong one located."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import apr_falsify as af
from apr_falsify.commands.live_wired import LiveWired
from apr_falsify.compare.bisection import Kind
from apr_falsify.errors import AprFalsifyError, ModelError
from apr_falsify.subjects.interface import Target
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
    with pytest.raises(AprFalsifyError, match="no whole model of ONNX"):
        af.bisect(TINY, f"onnx:{file}", tokens=TOKENS)


def test_a_decoder_of_onnx_is_the_files_that_it_names(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="onnx and onnxruntime are not installed")
    import onnx

    from apr_falsify.commands.runtimes import open_side

    file = tmp_path / "port [1].onnx"
    model = onnx.load(str(onnx_port(tmp_path)))
    inner = onnx.helper.make_tensor("inner", onnx.TensorProto.FLOAT, [1], b"1234", raw=True)
    (tmp_path / "of the branch").write_bytes(inner.raw_data)
    onnx.external_data_helper.set_external_data(inner, "of the branch")
    inner.ClearField("raw_data")
    branch = onnx.helper.make_graph([], "branch", [], [], [inner])
    model.graph.node.append(onnx.helper.make_node("If", ["yes"], ["out"], then_branch=branch))
    onnx.save(model, str(file), save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    wanted = {path for path in tmp_path.iterdir() if path.name != "port.onnx"}
    file.with_name("port [1].onnx.bak").write_text("an older one")
    file.with_name("port [1].onnx.d").mkdir()
    target = Target(path=file, model=af.open_model(TINY), tokens=TOKENS)
    subject = open_side("onnx", target)
    assert isinstance(subject, LiveWired)
    assert subject.files is not None
    assert (subject.files[0], set(subject.files)) == (file, wanted)
    assert len(wanted) > 10

    (tmp_path / "of the branch").unlink()
    with pytest.raises(ModelError, match="no such file") as caught:
        open_side("onnx", target)
    assert "which says that they lie there" in caught.value.expected
