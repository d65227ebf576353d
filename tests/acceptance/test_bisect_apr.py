"""``bisect --subject apr:`` with the real binary on the tiny checkpoint: sound, faulted, and as recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.model.stages import Key
from tests.acceptance.programs import TINY, Outcome, assert_refused, run
from tests.faulted_checkpoints import FAULTS, CheckpointFault, write_faulted
from tests.support import DATA

APR = shutil.which("apr")
pytestmark = [pytest.mark.real_apr, pytest.mark.skipif(APR is None, reason="no apr binary on PATH")]

TOKENS = "274,272,332,13,20,33"
Places = set[tuple[int, str]]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path_factory.getbasetemp() / "apr-falsify-cache"))


def bisected(subject: object, *more: object, oracle: Path = TINY) -> Outcome:
    return run("bisect", "--oracle", oracle, "--subject", subject, "--format", "json", *more)


def places(found: dict[str, Any]) -> Places:
    return {(source["layer"], stage) for source in found["sources"] for stage in source["stages"]}


FORMS = {
    "apr": DATA / "apr-tiny-qwen2" / "base-q4k.apr",
    "hf-directory": TINY,
    "gguf": DATA / "apr-tiny-qwen2" / "base-q4k.gguf",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_model_is_consistent_but_for_the_tokenizer(form: str) -> None:
    outcome = bisected(f"apr:{FORMS[form]}", "--layers", "0..3")
    found = outcome.json
    assert (outcome.code, found["kind"]) == (1, "consistent")
    assert [finding["type"] for finding in found["findings"]] == ["tokenizer"]
    assert len([row for row in found["stages"] if row["status"] == "compared"]) == 54
    assert {row["verdict"] for row in found["stages"] if row["status"] == "compared"} == {"within-floor"}
    assert max(row["residual"] for row in found["stages"] if row["residual"] is not None) < 1e-6
    said = found["subject"]
    assert said["version"].startswith("0.")
    assert (said["runtime"], said["exit_status"], said["absent"]) == ("apr", 0, {})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulted_checkpoint_is_located_live_and_from_its_recording(tmp_path: Path, fault: str) -> None:
    truth = set(FAULTS[fault].truth)
    model = write_faulted(TINY, tmp_path / fault, FAULTS[fault])
    place = tmp_path / "run"
    live = bisected(f"apr:{model}", "--layers", "0..3", "--out", place)
    assert live.code == 1
    assert places(live.json) == truth
    assert live.json["kind"] == "localised"
    if len(truth) > 1:  # one RoPE base in every layer is one cause
        (cause,) = live.json["causes"]
        assert (cause["name"], cause["layers"]) == ("constant", [0, 1, 2])
        assert cause["says"] == "rope default with base 10000 instead of default with base 1000000"
        assert cause["stages"] == ["q_post_rope", "k_post_rope"]
    # Without trace.json the files are what apr leaves: nothing says which weights it ran.
    (place / "subject" / "trace.json").unlink()
    recorded = bisected(f"recorded:{place / 'subject'}", "--layers", "0..3", "--tokens", TOKENS)
    assert recorded.code == 1
    assert places(recorded.json) == truth
    assert recorded.json["kind"] == live.json["kind"]


@pytest.mark.parametrize("form", ["hf-directory", "apr"])
def test_heads_that_are_not_those_of_the_tensors_are_a_geometry_finding(tmp_path: Path, form: str) -> None:
    fault = CheckpointFault(config={"num_key_value_heads": 1}, truth=frozenset())
    model = write_faulted(TINY, tmp_path / "model", fault)
    if form == "apr":
        assert APR is not None
        subprocess.run([APR, "import", model, "-o", tmp_path / "model.apr"], check=True, capture_output=True)
        model = tmp_path / "model.apr"
    outcome = bisected(f"apr:{model}", "--out", tmp_path / "run")
    found = outcome.json
    assert outcome.code == 1
    (told,) = (finding for finding in found["findings"] if finding["type"] == "geometry")
    assert told["explanation"] == "kv_heads is 2 in the oracle's model, 1 in the subject's"
    assert any("k_proj.weight has 64 rows" in note for note in found["not_checked"])
    assert "fits no shape of the heads" in found["subject"]["absent"]["qkv_matmul"]
    assert (found["kind"], found["sources"]) == ("unmeasured", [])


OTHER_HEADS = {
    "doubled": {"num_attention_heads": 16},
    "doubled-and-halved": {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 16},
}


@pytest.mark.parametrize("heads", OTHER_HEADS)
def test_stages_of_another_geometry_are_not_said_to_want_weights(tmp_path: Path, heads: str) -> None:
    fault = CheckpointFault(config=OTHER_HEADS[heads], truth=frozenset())
    outcome = bisected(f"apr:{write_faulted(TINY, tmp_path / 'model', fault)}", "--layers", "0..3")
    found = outcome.json
    assert (outcome.code, found["kind"], found["sources"]) == (1, "unmeasured", [])
    told = [finding["explanation"] for finding in found["findings"] if finding["type"] == "geometry"]
    assert "heads is 8 in the oracle's model, 16 in the subject's" in told
    unmeasured = [finding for finding in found["findings"] if finding["type"] == "unmeasured"]
    written = [finding for finding in unmeasured if "the subject gave none" not in finding["explanation"]]
    reasons = {(finding["explanation"].split(": ")[1], finding["try"]) for finding in written}
    assert reasons == {("the sides have different geometry", "run both sides on the same model")}
    assert sum(len(finding["stages"]) for finding in unmeasured) == 54
    assert any("different geometry" in said for said in found["not_checked"])
    assert not any("--oracle MODEL" in said for said in found["not_checked"])


def test_layers_and_their_feeder_are_those_of_the_whole_run(tmp_path: Path) -> None:
    assert run("capture", f"apr:{TINY}", "--layers", "0..3", "--out", tmp_path / "all").code == 0
    assert run("capture", f"apr:{TINY}", "--layers", "1..2", "--out", tmp_path / "one").code == 0
    files = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.bin")}
    assert {Path(name).parts[0] for name in files} == {"layer-0", "layer-1"}
    assert [name for name in files if name.startswith("layer-0")] == ["layer-0/post_ffn_residual.bin"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_what_is_captured_is_what_was_recorded(tmp_path: Path) -> None:
    assert run("capture", f"apr:{TINY}", "--layers", "0..3", "--out", tmp_path / "trace").code == 0
    recorded = DATA / "apr-tiny-qwen2" / "base"
    names = sorted(str(path.relative_to(recorded)) for path in recorded.rglob("*.bin"))
    assert names == sorted(
        str(p.relative_to(tmp_path / "trace")) for p in (tmp_path / "trace").rglob("*.bin")
    )
    for name in names:
        assert (tmp_path / "trace" / name).read_bytes() == (recorded / name).read_bytes()
    provenance = json.loads((tmp_path / "trace" / "trace.json").read_text())["provenance"]
    logits = (recorded / "lm_head.bin").read_bytes()
    assert provenance["argmax"] == {"id": _argmax(logits)}


def _argmax(stage_file: bytes) -> int:
    import numpy as np

    return int(np.argmax(np.frombuffer(stage_file, "<f4", offset=12)))


def test_the_pairing_of_a_llama_checkpoint_is_found_live_as_in_its_recording() -> None:
    folder = DATA / "apr-tiny-llama-hf"
    live = bisected(f"apr:{folder / 'model.apr'}", oracle=folder / "model").json
    recorded = bisected(f"recorded:{folder / 'trace'}", "--tokens", TOKENS, oracle=folder / "model").json
    assert places(live) == places(recorded)
    assert {Key(0, "q_post_rope"), Key(0, "k_post_rope")} <= places(live)
    status = {row["stage"]: row["status"] for row in live["stages"]}
    assert status["qkv_bias"] == "not-applicable"
    assert "qkv_bias" not in live["subject"]["absent"]


def test_a_model_that_the_program_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    cut = tmp_path / "cut.apr"
    whole = FORMS["apr"].read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    outcome = run("bisect", "--oracle", TINY, "--subject", f"apr:{cut}")
    assert_refused(outcome)
