"""One APRT file: written and read bit for bit, and refused where it is not whole."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.errors import AprtError
from apr_falsify.formats.aprt import MAX_VALUES, read_aprt, write_aprt
from tests.support import DATA
from tests.unit.helpers import open_to_all, run_script

RECORDED = sorted((DATA / "apr-tiny-qwen2" / "base").rglob("*.bin"))


def written(values: npt.NDArray[np.generic], layer: int | None) -> bytes:
    file = io.BytesIO()
    digest = write_aprt(file, values, layer)
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()
    return file.getvalue()


def stage_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.falsify_save_tensor_001
@pytest.mark.falsify_attn_sub_003
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_file_of_the_real_apr_is_read_and_written_back_byte_for_byte(path: Path) -> None:
    file = read_aprt(path)
    assert written(file.values, file.layer) == path.read_bytes()


def test_all_recorded_files_were_tried() -> None:
    assert len(RECORDED) == 54


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), max_size=50),
    layer=st.none() | st.integers(0, 2**32 - 2),
)
def test_any_bits_and_layer_come_back(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int], layer: int | None
) -> None:
    path = tmp_path_factory.mktemp("aprt") / "stage.bin"
    values = np.array(bits, dtype=np.uint32).view(np.float32)
    path.write_bytes(written(values, layer))
    file = read_aprt(path)
    assert file.layer == layer
    np.testing.assert_array_equal(file.values.view(np.uint32), values.view(np.uint32))


@pytest.mark.falsify_save_tensor_001
def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    expected = b"APRT" + struct.pack("<II", 7, 2) + struct.pack("<ff", 1.5, -2.0)
    assert written(np.array([[1.5], [-2.0]], dtype=np.float32), 7) == expected


def test_a_whole_model_stage_has_the_layer_of_all_ones() -> None:
    assert written(np.zeros(1, dtype=np.float32), None)[4:8] == b"\xff\xff\xff\xff"


@pytest.mark.falsify_save_tensor_003
def test_payload_and_sign_of_nan_are_kept(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0xFF800000], dtype=np.uint32)
    path = stage_file(tmp_path / "x.bin", written(bits.view(np.float32), 0))
    np.testing.assert_array_equal(read_aprt(path).values.view(np.uint32), bits)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i8", "<u1", "?"])
def test_other_number_types_are_written_as_f32(tmp_path: Path, dtype: str) -> None:
    values = np.array([0, 1, 1, 0], dtype=dtype).reshape(2, 2)
    path = stage_file(tmp_path / "x.bin", written(values, 0))
    assert list(read_aprt(path).values) == [0, 1, 1, 0]


def test_what_is_beyond_f32_becomes_infinite_without_a_warning() -> None:
    content = written(np.array([1e300, -1e300]), 0)
    assert list(np.frombuffer(content[12:], dtype="<f4")) == [np.inf, -np.inf]


def test_a_strided_array_is_written_in_its_own_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert written(values, 0) == written(values.copy(), 0)


def test_more_values_than_one_block_are_written_whole() -> None:
    values = np.arange((1 << 20) + 3, dtype=np.float32)
    assert np.array_equal(np.frombuffer(written(values, 0)[12:], dtype="<f4"), values)


def test_no_values_are_a_file_too(tmp_path: Path) -> None:
    path = stage_file(tmp_path / "x.bin", written(np.zeros((0, 4), dtype=np.float32), 3))
    assert read_aprt(path).values.shape == (0,)


def test_values_are_mapped_and_read_only() -> None:
    values = read_aprt(RECORDED[0]).values
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable


WHOLE = written(np.arange(4, dtype=np.float32), 0)


@pytest.mark.falsify_save_tensor_005
@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(b"", "too few", id="empty"),
        pytest.param(WHOLE[:11], "too few", id="eleven-bytes"),
        pytest.param(b"TRPA" + WHOLE[4:], "starts with", id="other-magic"),
        pytest.param(b"PK\x03\x04" + bytes(20), "starts with", id="a-zip"),
        pytest.param(WHOLE[:-1], "27 bytes", id="one-byte-missing"),
        pytest.param(WHOLE[:12], "12 bytes", id="header-alone"),
        pytest.param(WHOLE + b"\0", "29 bytes", id="one-byte-more"),
        pytest.param(b"APRT" + struct.pack("<II", 0, MAX_VALUES), "12 bytes", id="absurd-count"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, content: bytes, what: str) -> None:
    path = stage_file(tmp_path / "attn_norm.bin", content)
    with pytest.raises(AprtError, match=what) as refusal:
        read_aprt(path)
    assert refusal.value.where == str(path)
    assert refusal.value.expected
    assert refusal.value.remedy


@pytest.mark.falsify_save_tensor_005
@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("aprt") / "x.bin"
    path.write_bytes(content)
    whole = content[:4] == b"APRT" and len(content) == 12 + 4 * int.from_bytes(content[8:12], "little")
    with nullcontext() if whole else pytest.raises(AprtError):
        read_aprt(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AprtError, match="No such file") as refusal:
        read_aprt(tmp_path / "no.bin")
    assert refusal.value.where == str(tmp_path / "no.bin")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AprtError, match="not a regular file"):
        read_aprt(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(AprtError, match="not a regular file"):
        read_aprt(tmp_path / "x.bin")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = stage_file(tmp_path / "x.bin", WHOLE)
    path.chmod(0)
    open_to_all(tmp_path)
    script = """
from pathlib import Path
from apr_falsify.formats.aprt import read_aprt
from apr_falsify.errors import AprtError
become_nobody()
try:
    read_aprt(Path(sys.argv[1]))
except AprtError as error:
    print(error)
"""
    done = run_script(script, path)
    assert "Permission denied" in done.stdout, done.stderr
    assert str(path) in done.stdout


def test_a_header_cannot_hold_every_layer() -> None:
    for layer in (-1, 0xFFFFFFFF, 2**40):
        with pytest.raises(AprtError, match=f"layer {layer}"):
            write_aprt(io.BytesIO(), np.zeros(1, dtype=np.float32), layer)


def test_more_values_than_the_header_can_count_are_refused() -> None:
    with pytest.raises(AprtError, match="values"):
        write_aprt(io.BytesIO(), np.broadcast_to(np.float32(0), (MAX_VALUES + 1,)), 0)


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(AprtError, match="complex"):
        write_aprt(io.BytesIO(), np.zeros(1, dtype=np.complex64), 0)


def test_more_files_than_the_soft_limit_of_open_files_can_be_mapped(tmp_path: Path) -> None:
    stage_file(tmp_path / "x.bin", WHOLE)
    script = """
from pathlib import Path
from apr_falsify.formats.aprt import read_aprt
resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [read_aprt(Path(sys.argv[1])) for _ in range(100)]
print(len(files))
"""
    done = run_script(script, tmp_path / "x.bin")
    assert done.stdout.strip() == "100", done.stderr
