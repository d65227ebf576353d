"""A trace on disk: what is written is read back, and whatever is not whole is refused by name."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.errors import AprtError, TraceError
from apr_falsify.model.geometry import geometry_of_hf_dir
from apr_falsify.model.stages import Key
from apr_falsify.traces.capture import TraceWriter
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.stage_files import INCOMPLETE, scan
from apr_falsify.traces.trace import (
    is_trace,
    read_stage,
    read_trace,
    relative_path,
    sha256_of,
    shaped,
)
from tests.support import DATA
from tests.unit.helpers import TINY, small_geometry
from tests.unit.traces import TOKENS, edit_json, refusal_of, write_trace

RECORDED = DATA / "apr-tiny-qwen2" / "base"


# round trip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write_trace(tmp_path / "run")
    found = read_trace(tmp_path / "run")
    assert found.provenance == written.provenance
    assert found.geometry == written.geometry == small_geometry()
    assert found.tokens == TOKENS
    assert list(found.stages) == list(written.stages)
    assert found.layers == (0, 1)
    for key, array in written.stages.items():
        np.testing.assert_array_equal(found.stages[key].data, array.data)
        assert found.stages[key].sha256 == array.sha256 == sha256_of(tmp_path / "run" / relative_path(key))
        assert found.stages[key].layout == ()


def test_the_layout_is_that_of_apr(run: Path) -> None:
    ours = {str(path.relative_to(run)) for path in run.rglob("*.bin")}
    theirs = {
        str(path.relative_to(RECORDED)) for path in RECORDED.rglob("*.bin") if "layer-2" not in str(path)
    }
    assert ours == {name for name in theirs if "qkv_bias" not in name}


def test_stages_are_mapped_and_not_read(run: Path) -> None:
    data = read_trace(run).stages[0, "attn_scores"].data
    assert data.shape == (4, 5, 5)
    assert isinstance(data, np.memmap)


def test_nan_payloads_and_infinities_are_kept_bit_for_bit(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFF800000, 0x7F800000, 0xFFC12345] * 20, dtype=np.uint32)
    with TraceWriter(tmp_path / "run") as writer:
        writer.add(Key(1, "attn_out"), bits.view(np.float32).reshape(5, 16))
        writer.finish(provenance=Provenance(runtime="test"), geometry=small_geometry(), tokens=TOKENS)
    data = read_trace(tmp_path / "run").stages[1, "attn_out"].data
    np.testing.assert_array_equal(np.asarray(data).view(np.uint32).ravel(), bits)


def test_the_recorded_directory_of_the_real_apr_is_scanned_and_fits_its_geometry() -> None:
    files, geometry = scan(RECORDED), geometry_of_hf_dir(TINY)
    assert len(files) == 54
    for key, path in files.items():
        values = read_stage(path, key)
        assert shaped(values, key, (), geometry, 6, path).size == values.size
    assert not is_trace(RECORDED)


# refusals: the directory


def test_no_such_directory_is_refused(tmp_path: Path) -> None:
    refusal_of(tmp_path / "none", r"no trace\.json")
    with pytest.raises(TraceError, match="no such directory"):
        scan(tmp_path / "none")


def test_a_directory_straight_from_apr_is_refused_with_how_to_read_it() -> None:
    assert "recorded:DIR" in refusal_of(RECORDED, r"no trace\.json").remedy


def test_an_empty_directory_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no stage files"):
        scan(tmp_path)
    assert not is_trace(tmp_path)


def test_an_unfinished_directory_is_refused(run: Path) -> None:
    (run / INCOMPLETE).touch()
    refusal_of(run, "did not finish")


def test_a_missing_stage_file_is_refused(run: Path) -> None:
    (run / "layer-1" / "ffn_up.bin").unlink()
    refusal_of(run, r": 1 stage file of trace\.json missing, the first is layer-1/ffn_up\.bin")


def test_an_extra_stage_file_is_refused(run: Path) -> None:
    shutil.copytree(run / "layer-1", run / "layer-2")
    refusal_of(run, "not in trace.json, the first is layer-2/")


def test_a_changed_stage_file_is_refused(run: Path) -> None:
    path = run / "layer-1" / "ffn_up.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refusal_of(run, "its sha256 is")
    assert error.where == str(path)
    assert "as trace.json says" in error.expected


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda content: b"TRPA" + content[4:], "starts with"),
        (lambda content: content[:-1], "bytes"),
        (lambda content: content + b"\0", "bytes"),
        (lambda content: content[:5], "too few"),
    ],
)
def test_a_stage_file_that_is_not_whole_is_refused_by_name(run: Path, spoil: Any, what: str) -> None:
    path = run / "layer-0" / "attn_norm.bin"
    path.write_bytes(spoil(path.read_bytes()))
    assert refusal_of(run, what, AprtError).where == str(path)


@pytest.mark.parametrize(
    ("name", "layer", "says"),
    [
        ("layer-0/attn_norm.bin", 1, "layer 1"),
        ("layer-1/attn_norm.bin", 0, "layer 0"),
        ("layer-1/attn_norm.bin", 0xFFFFFFFF, "the whole model"),
        ("final_norm.bin", 0, "layer 0"),
    ],
)
def test_a_header_of_another_layer_than_the_path_is_refused(
    run: Path, name: str, layer: int, says: str
) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:4] + struct.pack("<I", layer) + content[8:])
    error = refusal_of(run, f"the header names {says}")
    assert error.where == str(run / name)
    assert "as its path says" in error.expected


def test_a_number_of_values_that_fits_no_geometry_is_refused(run: Path) -> None:
    path = run / "layer-0" / "attn_norm.bin"
    path.write_bytes(b"APRT" + struct.pack("<II", 0, 79) + bytes(79 * 4))
    edit_json(run, lambda data: data["stages"][1].update(sha256=sha256_of(path)))
    error = refusal_of(run, "79 values fit no shape of attn_norm")
    assert error.expected == "5 tokens x 16 hidden (llama, 5 tokens)"


def test_a_stage_of_experts_in_a_model_without_is_refused(run: Path) -> None:
    path = run / "layer-0" / "moe_router.bin"
    path.write_bytes(b"APRT" + struct.pack("<II", 0, 2) + bytes(8))
    refusal_of(run, r"not in trace\.json")
    with pytest.raises(TraceError, match="moe_router") as refusal:
        shaped(np.zeros(2, np.float32), Key(0, "moe_router"), (), small_geometry(), 5, path)
    assert refusal.value.where == str(path)


def test_an_unknown_stage_is_refused_with_the_nearest_name(run: Path) -> None:
    (run / "layer-0" / "attn_norm.bin").rename(run / "layer-0" / "attn_norms.bin")
    error = refusal_of(run, "unknown stage 'attn_norms'")
    assert "'attn_norm'" in error.remedy


def test_a_stage_under_its_name_and_its_alias_is_refused(run: Path) -> None:
    shutil.copy(run / "layer-0" / "post_ffn_residual.bin", run / "layer-0" / "layer_output.bin")
    refusal_of(run, "is there twice")


def test_a_stage_in_two_spellings_is_refused(run: Path) -> None:
    shutil.copy(run / "layer-0" / "ffn_up.bin", run / "layer-0" / "FFN_UP.bin")
    refusal_of(run, "is there twice")


def test_a_layer_in_two_spellings_is_refused(run: Path) -> None:
    shutil.copytree(run / "layer-0", run / "layer-00")
    refusal_of(run, "is there twice")


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        ("final_norm.bin", "layer-0/final_norm.bin", "wrong place"),
        ("layer-0/attn_norm.bin", "attn_norm.bin", "wrong place"),
        ("layer-0/embedding.bin", "layer-1/embedding.bin", "exists in layer 0 alone"),
    ],
)
def test_a_stage_in_the_wrong_place_is_refused(run: Path, source: str, target: str, what: str) -> None:
    (run / source).rename(run / target)
    refusal_of(run, what)


def test_a_link_to_a_stage_file_outside_is_refused(run: Path, tmp_path: Path) -> None:
    path = run / "layer-0" / "attn_norm.bin"
    path.rename(tmp_path / "outside.bin")
    path.symlink_to(tmp_path / "outside.bin")
    assert refusal_of(run, "leads out of the trace").where == str(path)


def test_a_link_with_dots_to_a_stage_file_outside_is_refused(run: Path, tmp_path: Path) -> None:
    path = run / "layer-0" / "attn_norm.bin"
    path.rename(tmp_path / "outside.bin")
    path.symlink_to(Path("..", "..", "outside.bin"))
    refusal_of(run, "leads out of the trace")


def test_a_link_to_a_layer_outside_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "layer-1").rename(tmp_path / "outside")
    (run / "layer-1").symlink_to(tmp_path / "outside")
    refusal_of(run, "leads out of the trace")


def test_a_link_to_a_trace_json_outside_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "trace.json").rename(tmp_path / "outside.json")
    (run / "trace.json").symlink_to(tmp_path / "outside.json")
    refusal_of(run, "leads out of the trace")


def test_a_folder_whose_name_starts_like_the_trace_is_outside(run: Path, tmp_path: Path) -> None:
    (run / "layer-1").rename(tmp_path / "run-other")
    (run / "layer-1").symlink_to(tmp_path / "run-other")
    refusal_of(run, "leads out of the trace")


def test_links_within_the_trace_and_to_the_trace_are_followed(run: Path, tmp_path: Path) -> None:
    (run / "layer-1").rename(run / "kept")
    (run / "layer-1").symlink_to("kept")
    (tmp_path / "link").symlink_to(run)
    assert len(read_trace(tmp_path / "link").stages) == 35


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_a_stage_file_that_is_no_file_is_refused(run: Path, make: Any) -> None:
    path = run / "layer-0" / "attn_norm.bin"
    path.unlink()
    make(path)
    assert refusal_of(run, "no regular file").where == str(path)


def test_trace_json_that_is_a_pipe_is_not_waited_for(run: Path) -> None:
    (run / "trace.json").unlink()
    os.mkfifo(run / "trace.json")
    refusal_of(run, "not a regular file")
