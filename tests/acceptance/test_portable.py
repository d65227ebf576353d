"""What a run, a kernel's data and a bundle hold names no path of the machine that made them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.traces.trace import read_trace
from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, edit_json, run
from tests.subjects.fake_apr import MODEL, fake_apr
from tests.support import DATA, MACHINE_PATH, machine_paths_in


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models and recordings, beside the current directory and not below it."""
    place = tmp_path / "elsewhere"
    shutil.copytree(TINY, place / "tiny")
    shutil.copytree(RECORDINGS / "k-bias-zero", place / "recording")
    shutil.copy(MODEL, place / "tiny.apr")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))
    return place


def bisected(elsewhere: Path, *command: object) -> Path:
    """Bisect with the model of ``elsewhere`` as the oracle, and return where the run lies."""
    out = elsewhere.parent / "run"
    outcome = run("bisect", "--oracle", elsewhere / "tiny", *command, "--out", out)
    assert outcome.code in (0, 1), outcome
    assert {path.name for path in out.iterdir()} >= {"bisection.json", "report.html", "oracle", "subject"}
    return out


def models_in(out: Path) -> list[str]:
    found = json.loads((out / "bisection.json").read_text(encoding="utf-8"))
    return [found[side]["model"] for side in ("oracle", "subject")]


def test_the_search_finds_a_path(elsewhere: Path) -> None:
    out = bisected(elsewhere, "--subject", f"embedded:{elsewhere / 'tiny'}")
    planted = json.dumps({"model": str(elsewhere / "tiny")})
    (out / "subject" / "planted.json").write_text(planted)
    assert machine_paths_in(out, elsewhere.parent) == {"subject/planted.json": str(elsewhere.parent)}


def test_a_run_of_the_embedded_runtime(elsewhere: Path) -> None:
    out = bisected(elsewhere, "--subject", f"embedded:{elsewhere / 'tiny'}")
    assert machine_paths_in(out, elsewhere.parent) == {}
    digest = read_trace(out / "oracle").provenance.model_sha256
    assert models_in(out) == [f"tiny@sha256:{str(digest)[:12]}"] * 2
    again = run("bisect", "--oracle", elsewhere / "tiny", "--out", out)
    assert again.code == 0, "a side is known again by its digest"


def test_a_run_of_a_recording_as_apr_leaves_it(elsewhere: Path) -> None:
    out = bisected(elsewhere, "--subject", f"recorded:{elsewhere / 'recording'}", "--tokens", APR_TOKENS)
    assert machine_paths_in(out, elsewhere.parent) == {}
    assert models_in(out)[0] == models_in(out)[1] != ""


def test_a_run_of_anybodys_arrays(elsewhere: Path) -> None:
    tokens = ("--tokens", APR_TOKENS)
    ran = elsewhere / "trace"
    assert run("capture", f"embedded:{elsewhere / 'tiny'}", *tokens, "--out", ran).code == 0
    arrays = {name: array.data for (layer, name), array in read_trace(ran).stages.items() if layer == 0}
    np.savez(elsewhere / "port.npz", **{f"0.{name}": data for name, data in arrays.items()})
    stages = "".join(f'  {name}: {{from: "{{layer}}.{name}"}}\n' for name in arrays)
    text = f"schema: apr-falsify/mapping/v1\nruntime: port\ndtype: f32\ntokens: [{APR_TOKENS}]\nstages:\n"
    (elsewhere / "said.yaml").write_text(text + stages)
    mapping = ("--subject-option", f"mapping={elsewhere / 'said.yaml'}")
    out = bisected(elsewhere, "--subject", f"recorded:{elsewhere / 'port.npz'}", *mapping)
    assert machine_paths_in(out, elsewhere.parent) == {}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "recorded:.../port.npz" in page
    assert "mapping=.../said.yaml" in page


def test_a_run_of_a_program_with_the_log_of_what_it_printed(elsewhere: Path) -> None:
    program = fake_apr(elsewhere / "bin" / "apr", f"echo 'Model: {elsewhere}/tiny.apr'; ids; play")
    subject = ("--subject", f"apr:{elsewhere / 'tiny.apr'}", "--apr-binary", program)
    out = bisected(elsewhere, *subject)
    assert machine_paths_in(out, elsewhere.parent) == {}
    log = (out / "subject-apr.log").read_text(encoding="utf-8")
    assert "\nModel: .../tiny.apr\n" in log
    assert "$ .../apr trace --payload .../tiny.apr --save-tensor " in log
    assert models_in(out)[1].startswith("tiny.apr@sha256:")


def test_the_log_of_a_program_that_failed(elsewhere: Path) -> None:
    program = fake_apr(elsewhere / "bin" / "apr", f"ids; echo 'cannot open {elsewhere}/x/y' >&2; exit 8")
    out = elsewhere.parent / "run"
    model = elsewhere / "tiny.apr"
    outcome = run("bisect", "--subject", f"apr:{model}", "--apr-binary", program, "--out", out)
    assert outcome.code == 2
    assert f"cannot open {elsewhere}/x/y" in outcome.err, "a terminal is told the path"
    assert "cannot open .../y" in (out / "subject-apr.log").read_text(encoding="utf-8")
    assert machine_paths_in(out, elsewhere.parent) == {}


def test_the_data_of_one_kernel(elsewhere: Path) -> None:
    out = elsewhere.parent / "kernel"
    command = ("capture", "oracle", elsewhere / "tiny", "--tokens", "1,2,3")
    assert run(*command, "--export-replay", "attn_out@0", "--out", out).code == 0
    assert (out / "kernel.json").exists()
    assert machine_paths_in(out, elsewhere.parent) == {}


@pytest.mark.parametrize("side", ["oracle", "subject"])
def test_a_trace_of_an_earlier_version_is_read_and_its_path_is_not_handed_on(
    elsewhere: Path, side: str
) -> None:
    old = elsewhere / "old"
    command = ("capture", f"embedded:{elsewhere / 'tiny'}", "--tokens", "1,2,3", "--out", old)
    assert run(*command).code == 0
    told = json.loads((old / "trace.json").read_text(encoding="utf-8"))
    edit_json(old / "trace.json", provenance={**told["provenance"], "model": str(elsewhere / "tiny")})
    out = elsewhere.parent / "run"
    sides: Sequence[object] = ("--subject", old, "--oracle", elsewhere / "tiny")
    if side == "oracle":
        sides = ("--oracle", old, "--subject", f"embedded:{elsewhere / 'tiny'}")
    outcome = run("bisect", *sides, "--out", out)
    assert outcome.out.startswith("consistent: "), outcome
    assert machine_paths_in(out, elsewhere.parent) == {}
    assert models_in(out) == [told["provenance"]["model"]] * 2, "the digest says the rest of the name"


def test_a_bundle_of_an_earlier_version_verifies_and_its_report_names_no_path(tmp_path: Path) -> None:
    bundle, page = DATA / "bundle-v1-live.zip", tmp_path / "page.html"
    with zipfile.ZipFile(bundle) as archive:
        assert MACHINE_PATH.search(archive.read("bundle.json").decode("utf-8"))
    assert run("evidence", "verify", bundle).code == 0
    assert run("evidence", "report", bundle, "--out", page).code == 0
    assert MACHINE_PATH.search(page.read_text(encoding="utf-8")) is None
