"""Every refusal of design section 4, through the program: bare recordings and traces of ours."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, assert_refused, edit_json, listing, run

Breaks = Callable[[Path], object]
VICTIM = Path("layer-0/attn_norm.bin")


def patched(offset: int, data: bytes) -> Breaks:
    def change(trace: Path) -> None:
        content = bytearray((trace / VICTIM).read_bytes())
        content[offset : offset + len(data)] = data
        (trace / VICTIM).write_bytes(content)

    return change


def cut(trace: Path) -> None:
    os.truncate(trace / VICTIM, 100)


def resized(count: int) -> Breaks:
    def change(trace: Path) -> None:
        (trace / VICTIM).write_bytes(b"APRT" + struct.pack("<II", 0, count) + bytes(4 * count))

    return change


def renamed(name: str) -> Breaks:
    return lambda trace: (trace / VICTIM).rename((trace / VICTIM).with_name(name))


def doubled(trace: Path) -> None:
    shutil.copy(trace / "layer-0" / "post_ffn_residual.bin", trace / "layer-0" / "layer_output.bin")


def linked_out(trace: Path) -> None:
    outside = trace.parent / "outside.bin"
    shutil.move(trace / VICTIM, outside)
    (trace / VICTIM).symlink_to(outside)


def emptied(trace: Path) -> None:
    for path in trace.rglob("*.bin"):
        path.unlink()


# Defect -> how it is made, and what the message must say.
DEFECTS: dict[str, tuple[Breaks, tuple[str, ...]]] = {
    "wrong-magic": (patched(0, b"GGUF"), (str(VICTIM), "b'GGUF'", "b'APRT'")),
    "truncated": (cut, (str(VICTIM), "100 bytes", "expected:")),
    "header-of-another-layer": (patched(4, b"\x02"), (str(VICTIM), "layer 2", "layer 0, as its path says")),
    "dim-product-fits-nothing": (resized(1535), (str(VICTIM), "1535 values", "256 hidden")),
    "empty-stage": (resized(0), (str(VICTIM), "0 values")),
    "unknown-stage": (renamed("attn_nrom.bin"), ("attn_nrom", "did you mean 'attn_norm'")),
    "stage-there-twice": (doubled, ("layer-0", "twice")),
    "link-out-of-the-trace": (linked_out, (str(VICTIM), "leads out of the trace")),
    "whole-model-stage-in-a-layer": (renamed("lm_head.bin"), ("lm_head", "wrong place")),
    "unfinished": (lambda trace: (trace / "INCOMPLETE").touch(), ("did not finish",)),
    "no-stages": (emptied, ("no stage files",)),
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDINGS / "base", tmp_path / "bare"))


@pytest.fixture
def trace(tmp_path: Path, embedded_run: Path) -> Path:
    return Path(shutil.copytree(embedded_run / "subject", tmp_path / "trace"))


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_broken_recording_is_refused(bare: Path, defect: str) -> None:
    change, said = DEFECTS[defect]
    change(bare)
    before = listing(bare.parent)
    outcome = run(
        "bisect", "--oracle", TINY, "--subject", f"recorded:{bare}", "--tokens", APR_TOKENS,
        "--out", bare.parent / "run",
    )  # fmt: skip
    assert_refused(outcome, bare, *said)
    assert listing(bare.parent) == before


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_broken_trace_is_refused(trace: Path, embedded_run: Path, defect: str) -> None:
    change, said = DEFECTS[defect]
    change(trace)
    before = listing(trace.parent)
    if defect in ("empty-stage", "dim-product-fits-nothing"):
        said = (str(VICTIM), "sha256")  # a file that trace.json names is known by its digest first
    assert_refused(run("compare", embedded_run / "oracle", trace), trace, *said)
    assert listing(trace.parent) == before


def test_a_changed_value_is_refused_by_its_digest(trace: Path, embedded_run: Path) -> None:
    patched(40, b"\x00\x00\x80\x3f")(trace)
    assert_refused(run("compare", embedded_run / "oracle", trace), trace / VICTIM, "sha256")


def test_a_stage_file_that_is_gone_is_refused(trace: Path, embedded_run: Path) -> None:
    (trace / VICTIM).unlink()
    assert_refused(run("compare", embedded_run / "oracle", trace), trace, "missing", str(VICTIM))


def test_a_stage_file_that_is_too_many_is_refused(trace: Path, embedded_run: Path) -> None:
    (trace / "layer-1").mkdir()
    data = bytearray((trace / VICTIM).read_bytes())
    data[4] = 1
    (trace / "layer-1" / "attn_norm.bin").write_bytes(data)
    assert_refused(run("compare", embedded_run / "oracle", trace), trace, "not in trace.json", "layer-1")


@pytest.mark.parametrize("name", ["../outside", "layer-0/attn_norm", "attn_nrom"])
def test_a_stage_name_in_trace_json_that_is_none_is_refused(
    trace: Path, embedded_run: Path, name: str
) -> None:
    stages = json.loads((trace / "trace.json").read_text())["stages"]
    stages[1]["stage"] = name
    edit_json(trace / "trace.json", stages=stages)
    assert_refused(run("compare", embedded_run / "oracle", trace), trace)


@pytest.mark.parametrize("key", ["tokens", "geometry", "provenance", "stages", "schema"])
def test_a_trace_json_that_lacks_a_part_is_refused(trace: Path, embedded_run: Path, key: str) -> None:
    edit_json(trace / "trace.json", **{key: ...})
    assert_refused(run("compare", embedded_run / "oracle", trace), trace, key)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1, "schema": 2}'])
def test_a_trace_json_that_is_no_json_is_refused(trace: Path, embedded_run: Path, content: bytes) -> None:
    (trace / "trace.json").write_bytes(content)
    assert_refused(run("compare", embedded_run / "oracle", trace), trace, "trace.json")


def test_a_trace_that_is_a_file_or_not_there_is_refused(tmp_path: Path, embedded_run: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_refused(run("compare", embedded_run / "oracle", tmp_path / "file"), tmp_path / "file", "expected:")
    assert_refused(run("compare", embedded_run / "oracle", tmp_path / "none"), tmp_path / "none", "expected:")
