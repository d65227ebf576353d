"""``apr:`` where the program is not what it should be: a typed error with its log, and no trace."""

from __future__ import annotations

import re
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.programs import TINY, Outcome, assert_refused, listing, run
from tests.acceptance.test_interrupted import interrupted, limited
from tests.subjects.fake_apr import FAILING, MODEL, RECORDING, calls, fake_apr, running_in


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def captured(program: Path, place: Path, *more: object) -> Outcome:
    return run("capture", f"apr:{MODEL}", "--out", place, "--apr-binary", program, *more)


def named_log(outcome: Outcome) -> Path:
    match = re.search(r"its log is (\S+?),? and", outcome.err)
    assert match is not None, outcome.err
    return Path(match[1])


@pytest.mark.parametrize("defect", FAILING)
def test_a_failing_program_is_a_typed_error_that_quotes_its_log(tmp_path: Path, defect: str) -> None:
    script, said = FAILING[defect]
    program = fake_apr(tmp_path / "bin" / "apr", script)
    outcome = captured(program, tmp_path / "trace")
    assert_refused(outcome, program, said)
    assert not (tmp_path / "trace").exists()
    log = named_log(outcome)
    assert log.is_file()
    printed = log.read_text(errors="replace").splitlines()
    assert printed[0] == f"$ {program} --version"
    if printed[-1].isascii() and printed[-1].isprintable():
        assert printed[-1][:100] in outcome.err
    assert all(char.isprintable() or char == "\n" for char in outcome.err)


def test_under_out_the_log_lies_in_the_run_and_no_side_does(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", "ids; echo 'out of luck'; exit 8")
    options = ("--oracle", TINY, "--apr-binary", program, "--out", tmp_path / "run")
    outcome = run("bisect", "--subject", f"apr:{MODEL}", *options)
    assert_refused(outcome, "exited with 8", tmp_path / "run" / "subject-apr.log", "| out of luck")
    assert set(listing(tmp_path / "run")) == {"subject-apr.log"}
    assert list((tmp_path / "temporary").glob("apr-falsify*")) == []


@pytest.mark.parametrize("script", ["sleep 1000", "ids; sleep 1000 & sleep 1000", "ids; play; sleep 1000"])
def test_a_program_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path, script: str) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", f"echo working; {script}")
    outcome = captured(program, tmp_path / "trace", "--timeout", "0.5")
    assert_refused(outcome, "did not end within 0.5 s and was killed", "--timeout", "| working")
    assert running_in(tmp_path / "bin") == []
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("script", "code"), [("ids; play", 0), ("true", 2), ("ids; play; sleep 1000", 2)], ids=str
)
def test_what_left_the_process_group_and_holds_the_output_open_is_killed_too(
    tmp_path: Path, script: str, code: int
) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", f"setsid sh -c 'sleep 1000; : {tmp_path}/bin' & {script}")
    begun = time.monotonic()
    outcome = captured(program, tmp_path / "trace", "--timeout", "5")
    assert outcome.code == code, outcome
    assert time.monotonic() - begun < 15
    assert running_in(tmp_path / "bin") == []


def test_ctrl_c_kills_the_program_and_leaves_nothing(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", "sleep 1000")
    command = ("capture", f"apr:{MODEL}", "--out", tmp_path / "trace", "--apr-binary", program)
    outcome = interrupted(command, when=lambda: len(calls(program)) == 2)
    assert outcome.code == 130, outcome
    assert running_in(tmp_path / "bin") == []
    assert list((tmp_path / "temporary").glob("apr-falsify*")) == []
    assert not (tmp_path / "trace").exists()


def test_an_oracle_that_fails_ends_the_program_that_runs_beside_it(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", "ids; sleep 1000")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((TINY / name).read_bytes())
    (model / "model.safetensors").write_bytes(_without(TINY / "model.safetensors", b"self_attn.q_proj"))
    options = ("--oracle", model, "--apr-binary", program, "--out", tmp_path / "run")
    assert_refused(run("bisect", "--subject", f"apr:{MODEL}", *options), "q_proj")
    assert running_in(tmp_path / "bin") == []
    assert not (tmp_path / "run").exists()


def _without(weights: Path, name: bytes) -> bytes:
    """Return a checkpoint whose tensors of ``name`` have another name of the same length."""
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return data[:8] + data[8 : 8 + length].replace(name, name[:-1] + b"x") + data[8 + length :]


@pytest.mark.parametrize("kind", ["absent", "not-executable", "no-program"])
def test_a_binary_that_cannot_be_run_is_said_by_name(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "apr"
    if kind != "absent":
        program.write_bytes(b"\x7fNOT A PROGRAM")
        program.chmod(0o755 if kind == "no-program" else 0o644)
    said = {"absent": "no such program", "not-executable": "is not executable", "no-program": "cannot be run"}
    assert_refused(captured(program, tmp_path / "trace"), program, said[kind])


def test_a_binary_in_the_current_folder_is_not_that_of_the_same_name_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = fake_apr(tmp_path / "here" / "apr"), fake_apr(tmp_path / "bin" / "apr")
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    monkeypatch.chdir(here.parent)
    assert captured(Path("./apr"), tmp_path / "trace").code == 0
    assert (len(calls(here)), calls(other)) == (2, [])
    here.chmod(0o644)
    assert_refused(captured(Path("./apr"), tmp_path / "second"), here, "is not executable")
    assert calls(other) == []


def test_without_a_binary_on_path_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = run("capture", f"apr:{MODEL}", "--out", tmp_path / "trace")
    assert_refused(outcome, "no program `apr` on PATH", "cargo install apr-cli", "--apr-binary")


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ("echo 'error: unsupported tensor' >&2; exit 5", "`apr import` exited with 5"),
        ("true", "`apr import` exited with 0 and wrote nothing"),
        (": > $made", "`apr import` exited with 0 and wrote nothing"),
        ("head -c 1000 /dev/zero > $made; kill -KILL $$", "`apr import` was killed by SIGKILL"),
    ],
)
def test_an_import_that_fails_leaves_nothing_in_the_cache(tmp_path: Path, imports: str, said: str) -> None:
    program = fake_apr(tmp_path / "bin" / "apr", imports=imports)
    outcome = run("capture", f"apr:{TINY}", "--out", tmp_path / "trace", "--apr-binary", program)
    assert_refused(outcome, said)
    assert named_log(outcome).is_file()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert [line.split()[0] for line in calls(program)] == ["import"]


def test_a_disk_that_takes_no_more_stage_files_is_told(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "bin" / "apr")
    outcome = limited(3000, "capture", f"apr:{MODEL}", "--out", tmp_path / "trace", "--apr-binary", program)
    assert_refused(outcome, program, "its log is")
    assert not (tmp_path / "trace").exists()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "file"))
    program = fake_apr(tmp_path / "bin" / "apr")
    outcome = run("capture", f"apr:{TINY}", "--out", tmp_path / "trace", "--apr-binary", program)
    assert_refused(outcome, tmp_path / "file", "APR_FALSIFY_CACHE")


@pytest.mark.parametrize("path", ["nowhere", "notes.txt", "empty"])
def test_a_path_that_is_no_model_is_refused_before_anything_runs(tmp_path: Path, path: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    program = fake_apr(tmp_path / "bin" / "apr")
    options = ("--oracle", TINY, "--apr-binary", program)
    outcome = run("bisect", "--subject", f"apr:{tmp_path / path}", *options)
    assert_refused(outcome, tmp_path / path, "MODEL.apr, MODEL.gguf or a HuggingFace directory")
    assert calls(program) == []


def test_nan_is_data_and_a_source_where_it_comes_and_where_it_goes(tmp_path: Path) -> None:
    program = fake_apr(
        tmp_path / "bin" / "apr", f"ids; play; cp {_with_nan(tmp_path)} $dir/layer-0/attn_out.bin"
    )
    options = ("--oracle", TINY, "--apr-binary", program, "--format", "json", "--out", tmp_path / "run")
    outcome = run("bisect", "--subject", f"apr:{MODEL}", *options)
    assert outcome.code == 1
    sources = [(source["layer"], source["stages"]) for source in outcome.json["sources"]]
    assert sources == [(0, ["attn_out"]), (0, ["post_attn_residual"])]
    kept = (tmp_path / "run" / "subject" / "layer-0" / "attn_out.bin").read_bytes()
    assert kept == (tmp_path / "nan.bin").read_bytes()


def _with_nan(folder: Path) -> Path:
    data = bytearray((RECORDING / "layer-0" / "attn_out.bin").read_bytes())
    data[12:16] = np.float32("nan").tobytes()
    (folder / "nan.bin").write_bytes(data)
    return folder / "nan.bin"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("bisect", "--apr-binary", "apr"), "--apr-binary"),
        (("capture", f"embedded:{TINY}", "--out", "t", "--apr-binary", "apr"), "--apr-binary"),
        (("capture", "oracle", TINY, "--out", "t", "--timeout", "3"), "--timeout"),
        (("capture", f"apr:{MODEL}", "--out", "t", "--arithmetic", "f32"), "--arithmetic"),
        (("bisect", "--apr-binary", ""), "--apr-binary"),
        (("bisect", "--subject", f"apr:{MODEL}", "--timeout", "0"), "--timeout"),
    ],
)
def test_an_option_that_changes_nothing_or_says_nothing_is_refused(
    command: tuple[object, ...], option: str
) -> None:
    assert_refused(run(*command), option)
