"""Ports with a cache and padded ones, from file to exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

import apr_falsify as af
from apr_falsify.model.stages import Key
from apr_falsify.traces.trace import read_trace
from tests.acceptance.programs import TINY, assert_refused, program_without, run
from tests.acceptance.test_porting import QUOTER, ROOT, stable
from tests.acceptance.test_right_ports import accused
from tests.support import REAL_VARIABLE, real_folder
from tests.unit.subjects.pass_dumps import end_to_end, mapping_of

HANDED: Mapping[str, tuple[str, str, str, str]] = {
    "cache": ("decode-right", "good.npz", "passes: [13, 1, 1, 1]", ""),
    "position-zero": (
        "decode-position-zero",
        "decode-zero.npz",
        "passes: [13, 1, 1, 1]",
        "tokens 13 to 15 at position 0",
    ),
    "left-padding": ("left-padding-right", "padded-right.npz", "padding: {left: 5}", ""),
    "left-padding-by-its-ids": ("left-padding-right", "padded-right.npz", "padding: left", ""),
    "left-padding-unsaid": ("left-padding-right", "padded-right.npz", "", ""),
    "learned-positions": ("gpt2-leftpad", "pad5.npz", "", "run on through left padding of 5"),
    "learned-positions-right": ("gpt2-leftpad", "good.npz", "", ""),
}
"""Case -> folder, recording, what its mapping says besides, and what must be told."""


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
@pytest.mark.parametrize("case", HANDED)
def test_a_handed_port_is_right_or_its_cause_is_named(case: str, tmp_path: Path) -> None:
    real = real_folder()
    assert real is not None
    name, recording, more, words = HANDED[case]
    folder = real / "field" / name
    mapping = tmp_path / "MAPPING.yaml"
    mapping.write_text((folder / "MAPPING.yaml").read_text() + f"\n{more}\n")
    found = run(
        *("bisect", "--oracle", folder / "model", "--subject", f"recorded:{folder / recording}"),
        *("--subject-option", f"mapping={mapping}", "--format", "json"),
    )
    truth = json.loads((folder / "expected.json").read_text())["truth"] if words else []
    assert accused(found) == {Key(layer, stage) for layer, stage in truth}
    assert found.code == (1 if words else 0)
    assert found.json["kind"] == ("localised" if words else "consistent")
    assert words in "".join(one["explanation"] for one in found.json["findings"])


ON_TINY = ("bisect", "--oracle", TINY, "--tokens", "5,6,7,8,9,10", "--layers", "0..3")


def test_both_sides_run_in_the_passes_that_were_asked_for(tmp_path: Path) -> None:
    found = run(*ON_TINY, "--decode", "2", "--format", "json", "--out", tmp_path / "run")
    assert (found.code, found.json["kind"], found.json["passes"]) == (0, "consistent", [4, 1, 1])
    traces = [read_trace(tmp_path / "run" / side) for side in ("oracle", "subject")]
    assert [trace.passes.sizes for trace in traces] == [(4, 1, 1), (4, 1, 1)]
    text = run(*ON_TINY, "--passes", "4,1,1", "--out", tmp_path / "run")
    assert "passes  3: 4 1 1" in text.out, "the same passes in other words are the same run"
    assert run(*ON_TINY, "--chunks", "4", "--out", tmp_path / "run").code == 2
    positions = run(*ON_TINY, "--positions", "3,4,5,6,7,8", "--chunks", "4", "--format", "json")
    assert (positions.code, positions.json["passes"]) == (0, [4, 2])
    assert positions.json["positions"] == [3, 4, 5, 6, 7, 8]


def test_a_trace_in_passes_is_compared_without_torch(tmp_path: Path) -> None:
    for side, more in (("whole", ()), ("cached", ("--decode", "3"))):
        arguments = ("--tokens", "5,6,7,8,9,10", "--layers", "0..3", *more, "--out", tmp_path / side)
        assert run("capture", f"embedded:{TINY}", *arguments).code == 0
    found = run("compare", tmp_path / "whole", tmp_path / "cached", "--weights", TINY)
    assert found.code == 0
    assert found.out.startswith("consistent")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--passes", "3,1"), "hold 4, and 6 were run"),
        (("--passes", "3,x"), "not whole numbers"),
        (("--passes", "6,0"), "from 1 that add up"),
        (("--decode", "6"), "6 tokens one by one of 6"),
        (("--decode", "2", "--chunks", "2"), "say the same thing twice"),
        (("--positions", "0,1"), "2 positions for 6 tokens"),
    ],
)
def test_passes_that_cannot_be_are_refused(options: tuple[str, ...], said: str) -> None:
    assert_refused(run(*ON_TINY, *options), said)


def test_passes_on_the_command_line_are_those_of_a_recording_that_says_none(tmp_path: Path) -> None:
    arguments = ("--tokens", "5,6,7,8", "--layers", "0..3", "--decode", "2", "--out", tmp_path / "trace")
    assert run("capture", f"embedded:{TINY}", *arguments).code == 0
    trace = read_trace(tmp_path / "trace")
    np.savez(tmp_path / "port.npz", **end_to_end(trace))
    (tmp_path / "MAPPING.yaml").write_text(yaml.safe_dump(mapping_of(trace), sort_keys=False))
    port = f"recorded:{tmp_path / 'port.npz'}"
    bisect = ("bisect", "--oracle", TINY, "--subject", port, "--format", "json")
    found = run(*bisect, "--passes", "2,1,1")
    assert (found.code, found.json["kind"], found.json["findings"]) == (0, "consistent", [])
    with (tmp_path / "MAPPING.yaml").open("a") as file:
        file.write("passes: [3, 1]\n")
    assert_refused(run(*bisect, "--passes", "2,1,1"), "it ran in passes of [3, 1] tokens")


def test_what_stands_beside_no_cache_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    options = ("--passes", "3,3", "--export-replay", "attn_scores@0", "--out", tmp_path / "kernel")
    found = run("capture", f"embedded:{TINY}", "--tokens", "5,6,7,8,9,10", *options)
    assert_refused(found, "in 2 passes")


def test_the_page_on_phases_says_what_its_commands_print(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "phases.md").read_text(encoding="utf-8")
    blocks = list(QUOTER["printed"](page, QUOTER["prepared"](tmp_path)))
    assert len(blocks) == page.count("\n$ ") >= 7
    for command, quoted, printed in blocks:
        assert stable(quoted) == stable(printed), command


def test_python_runs_and_compares_passes_too() -> None:
    tokens = [5, 6, 7, 8, 9, 10]
    port = af.capture(f"embedded:{TINY}", tokens=tokens, passes=[4, 1, 1], layers=range(3))
    assert port.passes.sizes == (4, 1, 1)
    found = af.bisect(af.open_model(TINY), port)
    assert (found.kind, found.findings) == (af.Kind.CONSISTENT, ())
    with pytest.raises(af.AprFalsifyError, match="hold 5, and 6 were run"):
        af.capture(f"embedded:{TINY}", tokens=tokens, passes=[4, 1])
    with pytest.raises(af.AprFalsifyError, match="not whole numbers"):
        af.capture(f"embedded:{TINY}", tokens=tokens, passes=[4.5, 1.5])


# --- a runtime against itself ------------------------------------------------------------------------------

ITSELF = ("bisect", "--oracle", f"embedded:{TINY}", "--tokens", "5,6,7,8,9,10", "--layers", "0..3")


def test_a_runtime_is_the_same_as_itself_to_the_last_bit_and_needs_no_torch() -> None:
    found = program_without("torch,transformers", *ITSELF, "--format", "json")
    assert (found.code, found.json["kind"], found.json["identical"]) == (0, "consistent", True)
    assert "is the same in both runs, to the last bit" in run(*ITSELF).out


def test_cached_decode_is_compared_with_the_prefill_of_the_same_runtime(tmp_path: Path) -> None:
    found = run(*ITSELF, "--decode", "3", "--out", tmp_path / "run", "--format", "json")
    assert (found.code, found.json["kind"], found.json["passes"]) == (0, "consistent", [3, 1, 1, 1])
    assert "identical" not in found.json, "sums of other lengths are rounded otherwise"
    oracle, subject = (read_trace(tmp_path / "run" / side) for side in ("oracle", "subject"))
    assert (oracle.passes.sizes, subject.passes.sizes) == ((6,), (3, 1, 1, 1))
    assert oracle.provenance.runtime == subject.provenance.runtime == "embedded"
    other = run(*ITSELF, "--arithmetic", "q8_0 blocks of 32", "--format", "json")
    assert "identical" not in other.json


def test_a_runtime_that_fixes_its_tokens_is_no_oracle(tmp_path: Path) -> None:
    assert_refused(
        run("bisect", "--oracle", f"recorded:{tmp_path}"), "--oracle", "cannot stand for transformers"
    )
    assert_refused(run(*ITSELF, "--dtype", "f16"), "--dtype", "the oracle is a runtime")


# --- transformers against itself ---------------------------------------------------------------------------

HF = f"transformers:{TINY}"
HF_ITSELF = ("bisect", "--subject", HF, "--tokens", "5,6,7,8,9,10", "--layers", "0..3", "--format", "json")


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (("--oracle", HF, "--subject-option", "attention=sdpa", "--decode", "2"), [4, 1, 1]),
        (("--oracle", HF, "--oracle-option", "attention=sdpa", "--chunks", "4"), [4, 2]),
        (("--oracle", HF, "--subject-option", "batch=2"), None),
        (("--oracle", f"embedded:{TINY}", "--subject-option", "batch=3", "--decode", "1"), [5, 1]),
    ],
    ids=["sdpa-decode", "chunks-of-eager", "batch", "batch-decode"],
)
def test_another_attention_or_a_batch_is_no_fault(options: tuple[str, ...], passes: list[int] | None) -> None:
    found = run(*HF_ITSELF, *options)
    assert (found.code, found.json["kind"], found.json["findings"]) == (0, "consistent", [])
    assert found.json.get("passes") == passes
    assert "identical" not in found.json, "sums are done in another order"


def test_what_was_asked_of_transformers_stands_in_its_trace_and_is_another_run(tmp_path: Path) -> None:
    arguments = ("--tokens", "5,6,7", "--layers", "0..1", "--out", tmp_path / "trace")
    assert run("capture", HF, *arguments, "--subject-option", "batch=2").code == 0
    trace = read_trace(tmp_path / "trace")
    assert (trace.provenance.runtime, trace.provenance.settings) == ("hf", {"batch": "2"})
    again = run("capture", HF, *arguments)
    assert_refused(again, "settings")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--oracle", TINY, "--oracle-option", "attention=sdpa"),
            ("--oracle-option", "the oracle is no runtime"),
        ),
        (
            ("--oracle", HF, "--oracle-option", "attention=flash"),
            ("--oracle-option", "attention=eager or sdpa"),
        ),
        (("--oracle", HF, "--oracle-option", "batches=2"), ("--oracle-option", "did you mean 'batch'")),
        (("--oracle", HF, "--oracle-option", "batch"), ("--oracle-option", "KEY=VALUE")),
        (("--subject-option", "batch=0"), ("--subject-option", "from 1 to 64")),
    ],
)
def test_settings_that_cannot_be_are_refused_at_their_side(
    options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert_refused(run(*HF_ITSELF, *options), *said)
