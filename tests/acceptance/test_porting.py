"""docs/porting.md, command by command, and the two options of ``capture`` that it shows."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.programs import (
    APR_TOKENS,
    PROGRAM,
    RECORDINGS,
    TINY,
    assert_refused,
    listing,
    program_without,
    run,
)
from tests.acceptance.test_interrupted import limited, without_rights

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "porting.md"
QUOTER: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "quote_page.py"))


def stable(text: str) -> list[str]:
    """Leave out what rounding decides: the last digits, and where the largest of tiny differences is."""
    lines = [re.sub(r"\d(\.\d+)?e[-+]\d+", "#", line) for line in text.splitlines()]
    return [line.split()[0] if re.match(r"[ !~]\w+ +\d\.\d{6} ", line) else line for line in lines]


def test_the_page_on_porting_says_what_its_commands_print(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(QUOTER["printed"](page, QUOTER["prepared"](tmp_path)))
    assert len(blocks) == page.count("\n$ ") >= 10
    for command, quoted, printed in blocks:
        assert stable(quoted) == stable(printed), command


def test_the_port_of_the_page_knows_nothing_of_this_package() -> None:
    for path in (ROOT / "docs" / "examples").glob("*.py"):
        assert "apr_falsify" not in path.read_text(encoding="utf-8")


def test_the_page_names_every_key_axis_and_word_of_a_mapping() -> None:
    from apr_falsify.model.stages import Layout
    from apr_falsify.subjects import mapping

    page = PAGE.read_text(encoding="utf-8")
    words = [*mapping._FIELDS, *mapping._STAGE_KEYS, *mapping.AXIS_WORDS, *Layout, mapping.MASKED]
    assert [word for word in words if f"`{word}`" not in page] == []


EXPORT = ("--export-replay", "attn_scores@1", "--oracle", TINY)


def kernel_of(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "kernel.json").read_text())
    for entry in said["files"]:
        assert list(np.load(folder / entry["file"]).shape) == entry["shape"]
    return said


@pytest.mark.parametrize("side", ["trace", "bare", "oracle", "embedded"])
def test_every_side_exports_a_kernel_that_it_got_right(side: str, tmp_path: Path, embedded_run: Path) -> None:
    out = ("--out", tmp_path / "kernel")
    commands: dict[str, tuple[object, ...]] = {
        "trace": ("capture", f"recorded:{embedded_run / 'subject'}", "--export-replay", "attn_scores", *out),
        "bare": ("capture", f"recorded:{RECORDINGS / 'base'}", "--tokens", APR_TOKENS, *EXPORT[:2], *out),
        "oracle": ("capture", "oracle", *EXPORT[3:], *EXPORT[:2], *out),
        "embedded": ("capture", f"embedded:{TINY}", *EXPORT[:2], *out),
    }
    oracle = ("--oracle", TINY) if side in ("trace", "bare") else ()
    outcome = run(*commands[side], *oracle)
    assert outcome.code == 0, outcome
    assert "4 arrays; captured is rel L2" in outcome.out
    said = kernel_of(tmp_path / "kernel")
    assert said["difference"]["rel_l2"] < 1e-6
    assert said["constants"]["scale"] == pytest.approx(32**-0.5, rel=1e-15)


@pytest.mark.real_apr
def test_the_real_apr_exports_a_kernel(tmp_path: Path) -> None:
    if shutil.which("apr") is None:
        pytest.skip("no apr binary on PATH")
    outcome = run("capture", f"apr:{TINY}", "--export-replay", "ffn_out@2", "--out", tmp_path / "kernel")
    assert outcome.code == 0, outcome
    said = kernel_of(tmp_path / "kernel")
    assert said["run"]["runtime"] == "apr"
    assert said["difference"]["rel_l2"] < 1e-6


def test_the_faulty_kernel_of_a_recording_is_exported_with_its_fault(tmp_path: Path) -> None:
    bare = ("capture", f"recorded:{RECORDINGS / 'k-bias-zero'}", "--tokens", APR_TOKENS, "--oracle", TINY)
    assert run(*bare, "--export-replay", "qkv_bias@0", "--out", tmp_path / "kernel").code == 0
    said = kernel_of(tmp_path / "kernel")
    assert said["difference"]["rel_l2"] > 0.1
    missing = np.load(tmp_path / "kernel/expected.npy") - np.load(tmp_path / "kernel/captured.npy")
    bias = np.load(tmp_path / "kernel/weights/k_bias.npy")
    np.testing.assert_allclose(missing[:, 256:320], np.tile(bias, (6, 1)), atol=1e-4)


REFUSED: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "unknown-stage": ((f"embedded:{TINY}", "--export-replay", "attn_score"), ("did you mean 'attn_scores'",)),
    "no-such-layer": ((f"embedded:{TINY}", "--export-replay", "attn_out@7"), ("beyond the model", "0..3")),
    "no-place": ((f"embedded:{TINY}", "--export-replay", "attn_out@x"), ("STAGE@LAYER",)),
    "idle-option": (
        (f"embedded:{TINY}", "--export-replay", "attn_out", "--layers", "0..1"),
        ("--layers", "captures what it needs"),
    ),
    "model-twice": (("oracle", TINY, "--oracle", TINY), ("named twice",)),
    "mapping-of-a-model": ((f"embedded:{TINY}", "--print-mapping"), ("for a recording",)),
    "mapping-of-nothing": (("recorded:", "--print-mapping"), ("for a recording",)),
    "mapping-of-what-is-not-there": (("recorded:none.npz", "--print-mapping"), ("none.npz",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = REFUSED[case]
    out = () if "--print-mapping" in arguments else ("--out", "kernel")
    assert_refused(run("capture", *arguments, *out), *said)
    assert listing(tmp_path) == {}


def test_a_stage_whose_inputs_were_not_captured_is_refused_by_their_names(tmp_path: Path) -> None:
    bare = Path(shutil.copytree(RECORDINGS / "base", tmp_path / "bare"))
    (bare / "layer-1" / "k_post_rope.bin").unlink()
    command = ("capture", f"recorded:{bare}", "--tokens", APR_TOKENS, *EXPORT, "--out", tmp_path / "kernel")
    assert_refused(run(*command), bare, "k_post_rope of layer 1", "not captured")
    assert not (tmp_path / "kernel").exists()


def test_an_export_does_not_touch_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "mine").write_text("x")
    before = listing(tmp_path)
    command = ("capture", f"embedded:{TINY}", *EXPORT[:2], "--out", tmp_path / "kernel")
    assert_refused(run(*command), tmp_path / "kernel", "exists already")
    assert listing(tmp_path) == before


def test_an_export_into_a_locked_folder_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "locked").mkdir(mode=0o555)
    command = ("capture", f"embedded:{tmp_path / 'model'}", "--tokens", "1,2", *EXPORT[:2])
    outcome = without_rights(*command, "--out", tmp_path / "locked" / "k")
    assert_refused(outcome, tmp_path / "locked" / "k", "Permission denied")


def test_a_disk_that_takes_no_more_is_told_and_no_kernel_left(tmp_path: Path) -> None:
    command = ("capture", f"embedded:{TINY}", "--export-replay", "lm_head", "--out", tmp_path / "kernel")
    assert_refused(limited(50_000, *command), tmp_path / "kernel", "cannot be written", "free space")
    assert listing(tmp_path) == {}


def killed_while_writing(command: list[str], seen: Callable[[], bool]) -> bool:
    """Start the program, kill it as soon as ``seen``; whether it was still running."""
    with subprocess.Popen([str(PROGRAM), *command], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not seen() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.kill()  # does nothing to one that has ended
    return process.returncode == -signal.SIGKILL


def test_an_export_that_is_killed_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    command = ["capture", f"embedded:{TINY}", "--tokens", "1,2", "--export-replay", "lm_head"]
    command += ["--out", str(kernel)]
    while not killed_while_writing(command, lambda: any(tmp_path.glob(".kernel.*/inputs"))):
        assert kernel_of(kernel)["stage"] == "lm_head"  # it was quicker; once more
        shutil.rmtree(kernel)
    assert not kernel.exists()
    assert run(*command).code == 0
    assert kernel_of(kernel)["stage"] == "lm_head"
    assert list(tmp_path.iterdir()) == [kernel]


def test_names_alone_are_proposed_without_torch(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", **{"layers.0.input_layernorm": np.zeros((2, 3), "f4")})
    outcome = program_without(
        "torch,transformers", "capture", f"recorded:{tmp_path / 'dump.npz'}", "--print-mapping"
    )
    assert outcome.code == 0, outcome
    assert 'from: "layers.{layer}.input_layernorm"' in outcome.out
