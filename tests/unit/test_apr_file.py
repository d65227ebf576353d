"""The header of an .apr file, held against what the real ``apr`` says of it, and broken in many ways."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.errors import ModelError
from apr_falsify.formats.apr import AprFile
from tests.support import DATA
from tests.unit.helpers import run_script

Q4K = DATA / "apr-tiny-qwen2" / "base-q4k.apr"
LLAMA = DATA / "apr-tiny-llama-hf" / "model.apr"
HEADER = "<4s2BHIQIQQI20x"
FIELDS = ("magic", "major", "minor", "flags", "count", "metadata", "metadata_size", "table", "data", "crc")


def header_of(content: bytes) -> dict[str, Any]:
    return dict(zip(FIELDS, struct.unpack_from(HEADER, content), strict=True))


def changed(content: bytes, **fields: Any) -> bytes:
    """Return the file with other header fields and the checksum that they then have."""
    values = {**header_of(content), **fields}
    head = struct.pack(HEADER, *(values[name] for name in FIELDS))
    if "crc" not in fields:
        head = head[:40] + struct.pack("<I", zlib.crc32(head[:40] + head[44:])) + head[44:]
    return head + content[64:]


def table_of(content: bytes) -> list[tuple[str, int, int]]:
    """Return each tensor's name, and where its type and its offset stand in the file."""
    header, found = header_of(content), []
    at = header["table"]
    for _ in range(header["count"]):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode()
        kind = at + 2 + length
        offset = kind + 2 + 8 * content[kind + 1]
        found.append((name, kind, offset))
        at = offset + 16
    return found


def patched(content: bytes, at: int, form: str, value: Any) -> bytes:
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def opened(folder: Path, content: bytes) -> AprFile:
    path = folder / "x.apr"
    path.write_bytes(content)
    return AprFile(path)


@pytest.fixture(scope="module")
def sound() -> bytes:
    return LLAMA.read_bytes()


def test_every_tensor_is_what_the_real_apr_lists() -> None:
    listed = json.loads((DATA / "apr-output" / "tensors-q4k.json").read_text(encoding="utf-8"))
    ours = AprFile(Q4K).tensors
    assert len(ours) == listed["tensor_count"] == 39
    for tensor in listed["tensors"]:
        info = ours[tensor["name"]]
        assert (list(info.shape), info.type, info.nbytes) == (
            tensor["shape"],
            tensor["dtype"],
            tensor["size_bytes"],
        )
    assert sum(info.nbytes for info in ours.values()) == listed["total_size_bytes"]


def test_the_metadata_is_the_json_object_of_the_file(sound: bytes) -> None:
    header = header_of(sound)
    start = header["metadata"]
    assert AprFile(LLAMA).metadata == json.loads(sound[start : start + header["metadata_size"]])
    assert AprFile(LLAMA).metadata["num_kv_heads"] == 2


def test_a_tensor_that_apr_announces_without_data_is_there_and_empty() -> None:
    head = AprFile(LLAMA).tensors["lm_head.weight"]
    assert (head.shape, head.nbytes) == ((512, 64), 0)


def test_nothing_of_the_data_is_read_on_opening(tmp_path: Path, sound: bytes) -> None:
    header = header_of(Q4K.read_bytes())
    large = tmp_path / "large.apr"
    content = Q4K.read_bytes()
    grown = patched(content, table_of(content)[-1][2], "<Q", 1 << 34)
    with large.open("wb") as file:  # the last tensor lies 16 GiB behind the others, in a sparse file
        file.write(grown)
        file.truncate(header["data"] + (1 << 34) + 524_288)
    script = """
from pathlib import Path
from apr_falsify.formats.apr import AprFile
resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, 1 << 29))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
info = AprFile(Path(sys.argv[1])).tensors["token_embd.weight"]
assert info.offset > 1 << 34
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
"""
    assert run_script(script, large).stderr == ""


BROKEN = {
    "magic": (lambda c: b"APRN" + c[4:], "starts with"),
    "another version": (lambda c: changed(c, major=3), "version 3.0"),
    "a newer minor version": (lambda c: changed(c, minor=1), "version 2.1"),
    "checksum": (lambda c: changed(c, crc=1), "checksum"),
    "a flipped bit in the header": (lambda c: c[:20] + bytes([c[20] ^ 1]) + c[21:], "checksum"),
    "compressed": (lambda c: changed(c, flags=0x401), "LZ4"),
    "compressed otherwise": (lambda c: changed(c, flags=0x402), "Zstandard"),
    "encrypted": (lambda c: changed(c, flags=0x404), "encrypted"),
    "a shard": (lambda c: changed(c, flags=0x410), "shard"),
    "columns": (lambda c: changed(c, flags=0xC00), "columns"),
    "a flag of tomorrow": (lambda c: changed(c, flags=0x1400), "unknown"),
    "metadata in the header": (lambda c: changed(c, metadata=32), "overlap"),
    "absurd metadata": (lambda c: changed(c, metadata_size=0xFFFFFFFF), "4294967295 bytes of metadata"),
    "metadata over the table": (lambda c: changed(c, metadata_size=1 << 20), "overlap"),
    "a table beyond the data": (lambda c: changed(c, table=1 << 60), "overlap"),
    "an absurd count": (lambda c: changed(c, count=0xFFFFFFFF), "overlap"),
    "more tensors than any model": (
        lambda c: changed(c, count=1 << 17, data=header_of(c)["table"] + (21 << 17)) + bytes(3 << 20),
        "announces 131072 tensors",
    ),
    "one tensor too many": (
        lambda c: changed(c, count=header_of(c)["count"] + 1),
        "a tensor.s name has 0 bytes",
    ),
    "data beyond the file": (lambda c: changed(c, data=1 << 40), "the data starts"),
    "data before the end of the table": (
        lambda c: changed(c, data=header_of(c)["table"] + 300),
        "table of tensors reaches",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_by_name(tmp_path: Path, sound: bytes, name: str) -> None:
    damage, says = BROKEN[name]
    with pytest.raises(ModelError, match=says) as caught:
        opened(tmp_path, damage(sound))
    assert caught.value.where == str(tmp_path / "x.apr")


BROKEN_TABLE = {
    "an unknown type": (0, "<B", 77, "unknown type 77"),
    "a type of another size": (0, "<B", 0, "bytes"),
    "no axes": (1, "<B", 0, "0 axes"),
    "too many axes": (1, "<B", 9, "9 axes"),
    "an empty axis": (2, "<Q", 0, "shape"),
    "an absurd axis": (2, "<Q", 1 << 62, "shape"),
    "another height": (2, "<Q", 511, "bytes"),
}


@pytest.mark.parametrize("name", BROKEN_TABLE)
def test_a_broken_entry_of_the_table_is_refused_by_name(tmp_path: Path, sound: bytes, name: str) -> None:
    at, form, value, says = BROKEN_TABLE[name]
    tensor, kind, _ = table_of(sound)[1]
    with pytest.raises(ModelError, match=says) as caught:
        opened(tmp_path, patched(sound, kind + at, form, value))
    assert tensor in caught.value.what


def test_a_tensor_beyond_the_end_is_refused(tmp_path: Path, sound: bytes) -> None:
    tensor, _, offset = table_of(sound)[-1]
    for far in (len(sound), (1 << 64) - 1):
        with pytest.raises(ModelError, match=f"{tensor} reaches beyond the end"):
            opened(tmp_path, patched(sound, offset, "<Q", far))


def test_tensors_that_overlap_are_refused(tmp_path: Path, sound: bytes) -> None:
    (first, _, at), (second, _, offset) = table_of(sound)[1:3]
    (start,) = struct.unpack_from("<Q", sound, at)
    with pytest.raises(ModelError, match="overlap") as caught:
        opened(tmp_path, patched(sound, offset, "<Q", start + 64))
    assert first in caught.value.what
    assert second in caught.value.what


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, sound: bytes) -> None:
    with pytest.raises(ModelError, match="is there twice"):
        opened(tmp_path, sound.replace(b"mlp.gate_proj", b"mlp.down_proj"))


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path, sound: bytes) -> None:
    header = header_of(sound)
    with pytest.raises(ModelError, match="UTF-8"):
        opened(tmp_path, patched(sound, header["table"] + 2, "<B", 0xFF))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "not an object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"a": ', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_garbled_metadata_is_refused(tmp_path: Path, sound: bytes, content: bytes, says: str) -> None:
    header = header_of(sound)
    rest = sound[header["table"] :]
    table = 64 + len(content)
    moved = changed(
        sound[:64] + content + rest,
        metadata_size=len(content),
        table=table,
        data=table + header["data"] - header["table"],
    )
    with pytest.raises(ModelError, match=says):
        opened(tmp_path, moved)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, sound: bytes) -> None:
    ends = [info.offset + info.nbytes for info in AprFile(LLAMA).tensors.values()]
    whole = max(ends)
    for length in (0, 1, 3, 63, 64, 100, 5000, 6000, whole // 2, whole - 1):
        with pytest.raises(ModelError):
            opened(tmp_path, sound[:length])
    assert len(opened(tmp_path, sound[:whole]).tensors) == 12  # a checksum of the data may follow, or not


@given(at=st.integers(0, 6272), bit=st.integers(0, 7))
def test_a_flipped_bit_before_the_data_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    content = bytearray(LLAMA.read_bytes())
    content[at] ^= 1 << bit
    try:
        file = opened(tmp_path_factory.mktemp("flipped"), bytes(content))
    except ModelError:
        return
    assert at >= 64  # the header's checksum sees every bit of it
    assert all(info.offset + info.nbytes <= len(content) for info in file.tensors.values())


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.apr", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            AprFile(path)
