"""``apr:`` where a script plays back what the real one recorded: what is run when, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.subjects.process import exit_text
from tests.acceptance.programs import RECORDINGS, TINY, Outcome, assert_refused, listing, run
from tests.subjects.fake_apr import MODEL, calls, fake_apr
from tests.support import DATA

UNKNOWN = (
    'echo \'error: Validation failed: bad plan args: Stage(Unknown { got: "attn_scores", valid: '
    '"embedding,attn_norm,qkv_matmul,qkv_bias,q_post_rope,k_post_rope,attention,attn_out,'
    "post_attn_residual,ffn_norm,ffn_gate,ffn_up,ffn_silu,ffn_swigl,ffn_out,post_ffn_residual,"
    "final_norm,lm_head\" })' >&2; exit 5"
)
"""What the real one says of a stage that it does not know, as an older version would say it."""

OLD = (
    f"case $names in *attn_s*) {UNKNOWN};; esac; ids; play; rm $dir/*/attn_scores.bin $dir/*/attn_softmax.bin"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))


def bisected(program: Path, *more: object, model: Path = MODEL) -> Outcome:
    command = ("bisect", "--oracle", TINY, "--subject", f"apr:{model}", "--apr-binary", program)
    return run(*command, "--format", "json", *more)


def _verbs(program: Path) -> list[str]:
    return [line.split()[0] for line in calls(program)]


def test_the_recording_played_back_is_judged_as_the_recording_is(tmp_path: Path) -> None:
    outcome = bisected(fake_apr(tmp_path / "apr"), "--layers", "0..3", "--weights", "oracle")
    options = ("--oracle", TINY, "--tokens", "274,272,332,13,20,33", "--format", "json", "--layers", "0..3")
    recorded = run("bisect", "--subject", f"recorded:{RECORDINGS / 'base-q4k'}", *options)
    told = [
        [(row["layer"], row["stage"], row["status"], row["verdict"]) for row in found.json["stages"]]
        for found in (outcome, recorded)
    ]
    assert told[0] == told[1]
    assert len([row for row in told[0] if row[2] == "compared"]) == 54
    assert outcome.json["kind"] == recorded.json["kind"]


def test_the_provenance_says_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA.parents[1])
    program = fake_apr(tmp_path / "apr", "ids; echo 'Device: CUDA:0'; play")
    found = bisected(program).json["subject"]
    sizes = {name: len(found[name]) for name in ("binary_sha256", "model_sha256")}
    assert sizes == {"binary_sha256": 64, "model_sha256": 64}
    said = {name: found[name] for name in ("runtime", "version", "device", "exit_status", "prompt", "model")}
    assert said == {
        "runtime": "apr",
        "version": "9.9.9 (fa4e000)",
        "device": "cuda:0",
        "exit_status": 0,
        "prompt": "What is 2+2?",
        "model": "tests/data/apr-tiny-qwen2/base-q4k.apr",
    }


def test_a_device_that_is_not_reported_is_unknown_and_so_is_a_version(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "apr", version="")
    found = bisected(program).json["subject"]
    assert (found["device"], found["version"]) == ("unknown", "unknown")


def test_the_tokens_of_the_program_are_run_by_the_oracle_and_the_tokenizers_difference_is_found(
    tmp_path: Path,
) -> None:
    found = bisected(fake_apr(tmp_path / "apr")).json
    assert found["tokens"] == [274, 272, 332, 13, 20, 33]
    (finding,) = [each for each in found["findings"] if each["type"] == "tokenizer"]
    assert "[274, 272, 223, 20, 13, 20, 33]" in finding["explanation"]


@pytest.mark.parametrize("option", [("--prompt", "Another text"), ("--tokens", "1,2,3")])
def test_another_prompt_than_the_programs_own_is_refused(tmp_path: Path, option: tuple[str, str]) -> None:
    program = fake_apr(tmp_path / "apr")
    command = ("bisect", "--oracle", TINY, "--subject", f"apr:{MODEL}", "--apr-binary", program)
    assert_refused(run(*command, *option), option[0], "leave")


def test_a_captured_side_is_used_again_and_the_program_is_not_started(tmp_path: Path) -> None:
    program, place = fake_apr(tmp_path / "bin" / "apr"), tmp_path / "run"
    first = bisected(program, "--out", place)
    started, kept = calls(program), listing(place)
    assert _verbs(program) == ["--version", "trace"]
    assert (place / "subject-apr.log").read_text().count("Token ids") == 1
    second = bisected(program, "--out", place)
    assert calls(program) == started
    assert listing(place) == kept
    assert (second.code, second.json) == (first.code, first.json)


def test_an_imported_model_is_imported_once_for_its_content(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "bin" / "apr")
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    for place in ("one", "two"):
        assert bisected(program, "--out", tmp_path / place, model=model).code == 1
    assert [line.split()[0] for line in calls(program)] == [
        "import",
        "--version",
        "trace",
        "--version",
        "trace",
    ]
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    bisected(program, model=model)
    assert _verbs(program)[5:] == ["import", "--version", "trace"]
    assert len(list((tmp_path / "cache" / "apr-import").glob("*.apr"))) == 2
    assert len(list((tmp_path / "cache" / "apr-import").glob("*.log"))) == 2


CHANGES: dict[str, Any] = {
    "binary": ("binary_sha256", lambda folder, program: program.write_text(program.read_text() + "\n")),
    "model": ("model_sha256", lambda folder, program: _flip_last(folder / "model.apr")),
}


def _flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("changed", CHANGES)
def test_a_captured_side_of_another_identity_is_refused_and_stays(tmp_path: Path, changed: str) -> None:
    program, model, place = fake_apr(tmp_path / "bin" / "apr"), tmp_path / "model.apr", tmp_path / "run"
    shutil.copy(MODEL, model)
    model.chmod(0o644)
    bisected(program, "--out", place, model=model)
    said, change = CHANGES[changed]
    change(tmp_path, program)
    started, kept = calls(program), listing(place)
    assert_refused(bisected(program, "--out", place, model=model), said, place / "subject")
    assert (calls(program), listing(place)) == (started, kept)


def test_other_layers_than_the_captured_ones_are_refused(tmp_path: Path) -> None:
    program, place = fake_apr(tmp_path / "apr"), tmp_path / "run"
    bisected(program, "--out", place)
    shutil.rmtree(place / "oracle")
    outcome = bisected(program, "--out", place, "--layers", "0..2")
    assert_refused(outcome, "wanted stages are not in it", place / "subject")


def test_stages_that_an_older_version_does_not_know_are_told_by_name_and_left_out(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "apr", OLD, version="apr 0.60.0")
    outcome = bisected(program, "--out", tmp_path / "run")
    found = outcome.json
    assert _verbs(program) == ["--version", "trace", "trace"]
    for name in ("attn_scores", "attn_softmax"):
        assert f"{name}: apr 0.60.0 does not know it" in found["not_checked"]
    status = {row["stage"]: row["status"] for row in found["stages"]}
    assert status["attn_scores"] == status["attn_softmax"] == "missing-in-subject"
    assert (status["attention"], status["moe_router"]) == ("compared", "not-applicable")
    again = bisected(program, "--out", tmp_path / "run")
    assert (again.json["not_checked"], len(calls(program))) == (found["not_checked"], 3)


def test_a_version_that_knows_none_of_the_stages_says_which_it_knows(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "apr", OLD, version="apr 0.60.0")
    outcome = bisected(program, "--stages", "attn_scores,attn_softmax")
    assert_refused(outcome, "apr 0.60.0 knows none of the stages", "q_post_rope")


def test_a_stage_that_is_accepted_and_not_written_is_told_by_name(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "apr", "ids; play; rm $dir/layer-0/ffn_silu.bin $dir/layer-2/ffn_silu.bin")
    found = bisected(program, "--layers", "0..3").json
    said = "ffn_silu: apr 9.9.9 (fa4e000) accepted it and wrote no file for layer 0"
    assert f"{said}, 2" in found["not_checked"]
    status = [row["status"] for row in found["stages"] if row["stage"] == "ffn_silu"]
    assert status == ["missing-in-subject", "compared", "missing-in-subject"]
    text = run(
        *("bisect", "--oracle", TINY, "--subject", f"apr:{MODEL}", "--apr-binary", program),
        *("--stages", "ffn_gate,ffn_silu,moe_router"),
    )
    assert said in " ".join(text.out.split())
    assert "not of this model: moe_router" in text.out


def test_the_program_runs_while_the_oracle_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_apr(tmp_path / "apr", f"ids; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; play")
    ran: list[bool] = []
    _before_the_oracle(monkeypatch, lambda: ran.append(_alive(tmp_path)) or (tmp_path / "go").touch())
    assert bisected(program, "--timeout", "20").code == 1
    assert ran == [True]


@pytest.mark.parametrize("reason", ["too-little", "nothing-says"])
def test_where_memory_is_short_the_program_ends_before_the_oracle_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:      4096 kB\n" if reason == "too-little" else "")
    monkeypatch.setattr("apr_falsify.commands.live._MEMINFO", meminfo)
    monkeypatch.setattr("apr_falsify.commands.live._CGROUP", tmp_path)
    program = fake_apr(tmp_path / "apr", "ids; sleep 0.3; play")
    ran: list[bool] = []
    _before_the_oracle(monkeypatch, lambda: ran.append(_alive(tmp_path)))
    assert bisected(program).code == 1
    assert ran == [False]


def _alive(folder: Path) -> bool:
    from tests.subjects.fake_apr import running_in

    return any("trace --payload" in line for line in running_in(folder / "apr"))


def _before_the_oracle(monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    from apr_falsify.commands import sides

    real = sides.capture_oracle

    def capture(*arguments: Any, **options: Any) -> Any:
        step()
        return real(*arguments, **options)

    monkeypatch.setattr(sides, "capture_oracle", capture)


def test_the_most_recent_imports_are_kept_and_abandoned_ones_removed(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "apr-import"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"old-{number}.apr").write_text("x")
        os.utime(folder / f"old-{number}.apr", (number, number))
    (folder / ".123-killed.apr").write_text("x")
    os.utime(folder / ".123-killed.apr", (0, 0))
    assert (
        run(
            "capture", f"apr:{TINY}", "--out", tmp_path / "t", "--apr-binary", fake_apr(tmp_path / "apr")
        ).code
        == 0
    )
    names = sorted(path.name.partition("-")[0] + path.suffix for path in folder.iterdir())
    assert names == [*["old.apr"] * 7, "tiny.apr", "tiny.log"]
    assert not (folder / "old-2.apr").exists()


def test_a_trace_that_was_captured_alone_is_used_by_a_bisection(tmp_path: Path) -> None:
    program = fake_apr(tmp_path / "apr")
    place = tmp_path / "run" / "subject"
    assert run("capture", f"apr:{MODEL}", "--out", place, "--apr-binary", program).code == 0
    assert json.loads((place / "trace.json").read_text())["tokens"] == [274, 272, 332, 13, 20, 33]
    before = calls(program)
    assert bisected(program, "--out", tmp_path / "run").code == 1
    assert calls(program) == before


def test_an_exit_is_told_as_wait_returned_it() -> None:
    assert exit_text(-9, {}) == "was killed by SIGKILL"
    assert exit_text(143, {}) == "exited with 143 (128 + SIGTERM)"
    assert exit_text(7, {}) == "exited with 7"
    assert exit_text(101, {101: "it panicked"}) == "exited with 101 (it panicked)"
