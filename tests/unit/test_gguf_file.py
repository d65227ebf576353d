"""The header of a GGUF file, held against the gguf package's own reader, and broken in many ways."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from apr_falsify.errors import ModelError
from apr_falsify.formats.gguf import GgufFile
from tests.support import DATA
from tests.unit.gguf_models import QUANTISABLE, write_gguf
from tests.unit.helpers import run_script

REAL = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"


@pytest.fixture(scope="module")
def theirs() -> gguf.GGUFReader:
    return gguf.GGUFReader(REAL)


def test_all_metadata_of_a_real_file_is_read(theirs: gguf.GGUFReader) -> None:
    ours = GgufFile(REAL)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value = field.contents()
        found = ours.array(key) if isinstance(value, list) else ours.metadata[key]
        assert found == value, key
    keys = {key for key in theirs.fields if not key.startswith("GGUF.")}
    arrays = {key for key in keys if ours.array(key) is not None}
    assert keys == ours.metadata.keys() | arrays
    assert "tokenizer.ggml.tokens" in arrays


def test_every_tensor_of_a_real_file_lies_where_the_other_reader_finds_it(theirs: gguf.GGUFReader) -> None:
    ours = GgufFile(REAL).tensors
    assert list(ours) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours[tensor.name]
        assert info.shape == tuple(int(size) for size in tensor.shape)[::-1]
        assert info.type == tensor.tensor_type.name.lower()
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)


def test_an_array_that_is_not_there_is_none() -> None:
    assert GgufFile(REAL).array("no.such.key") is None


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_float32("f32", 0.5)
    writer.add_bool("flag", True)
    writer.add_string("text", "Größe")
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float64("f64", 0.1)
    writer.add_array("names", ["a", "", "ü"])
    writer.add_array("numbers", [1, -2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    expected = {
        "u8": 200,
        "i8": -100,
        "u16": 60_000,
        "i16": -30_000,
        "u32": 4_000_000_000,
        "i32": -2_000_000_000,
        "f32": 0.5,
        "flag": True,
        "text": "Größe",
        "u64": 2**63,
        "i64": -(2**62),
        "f64": 0.1,
    }
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.array("names") == ["a", "", "ü"]
    assert file.array("numbers") == [1, -2, 3]
    assert file.tensors == {}


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_the_alignment_of_the_file_is_used(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_tensor("a", np.arange(3, dtype=np.float32))
    writer.add_tensor("b", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    for name, count in (("a", 3), ("b", 5)):
        offset = file.tensors[name].offset
        assert np.frombuffer(file.data, "<f4", count, offset).tolist() == list(range(count))


@pytest.mark.parametrize("kind", QUANTISABLE)
def test_sizes_of_each_type(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    info = GgufFile(write_gguf(tmp_path / "x.gguf", {"a": raw}, kinds={"a": kind})).tensors["a"]
    assert (info.shape, info.type, info.nbytes) == ((3, 64), kind.lower(), raw.nbytes)
    assert info.row_bytes * 3 == raw.nbytes


SMALL_KEYS = struct.pack("<Q", 3) + b"key" + struct.pack("<I", 4) + struct.pack("<I", 7)


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


BROKEN = {
    "empty": (b"", "empty"),
    "three-bytes": (b"GGU", "starts with"),
    "other-magic": (b"GGML" + bytes(60), "starts with"),
    "magic-alone": (b"GGUF", "ends too early"),
    "version-1": (header(version=1), "version 1"),
    "version-4": (header(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "no-counts": (header()[:12], "ends too early"),
    "absurd-key-count": (header(keys=2**63), "announces"),
    "absurd-tensor-count": (header(tensors=2**40), "announces"),
    "keys-missing": (header(keys=3), "ends too early"),
    "tensors-missing": (header(tensors=1), "ends too early"),
    "absurd-key-length": (header(keys=1, rest=struct.pack("<Q", 2**64 - 1) + b"key"), "ends too early"),
    "unknown-value-type": (header(keys=1, rest=key(b"k", 13, bytes(8))), "value type 13"),
    "array-of-arrays": (header(keys=1, rest=key(b"k", 9, struct.pack("<IQ", 9, 1))), "array type 9"),
    "absurd-array": (header(keys=1, rest=key(b"k", 9, struct.pack("<IQ", 0, 2**50))), "announces"),
    "more-texts-than-any-vocabulary": (
        header(keys=1, rest=key(b"k", 9, struct.pack("<IQ", 8, 2**21))),
        "announces 2097152",
    ),
    "more-tensors-than-any-model": (header(tensors=2**17), "announces 131072"),
    "array-too-long": (header(keys=1, rest=key(b"k", 9, struct.pack("<IQ", 12, 99))), "ends too early"),
    "absurd-string-in-array": (
        header(keys=2, rest=key(b"k", 9, struct.pack("<IQQ", 8, 1, 2**64 - 8)) + bytes(64)),
        "ends too early",
    ),
    "key-twice": (header(keys=2, rest=key(b"k", 4, bytes(4)) * 2), "k is there twice"),
    "array-twice": (header(keys=2, rest=key(b"k", 9, struct.pack("<IQ", 0, 0)) * 2), "k is there twice"),
    "tensor-twice": (header(tensors=2, rest=tensor(b"t", (1,)) * 2 + bytes(99)), "t is there twice"),
    "five-axes": (header(tensors=1, rest=tensor(b"t", (1,) * 5) + bytes(99)), "5 axes"),
    "absurd-axes": (header(tensors=1, rest=text(b"t") + b"\xff" * 4 + bytes(99)), "4294967295 axes"),
    "absurd-shape": (header(tensors=1, rest=tensor(b"t", (2**62, 2**62)) + bytes(99)), "beyond the end"),
    "axis-of-zero": (header(tensors=1, rest=tensor(b"t", (0, 2**63)) + bytes(99)), "the shape"),
    "absurd-offset": (header(tensors=1, rest=tensor(b"t", (1,), offset=2**63) + bytes(99)), "beyond"),
    "unknown-tensor-type": (header(tensors=1, rest=tensor(b"t", (1,), kind=999) + bytes(99)), "type 999"),
    "ragged-blocks": (header(tensors=1, rest=tensor(b"t", (33,), kind=8) + bytes(99)), "do not fill blocks"),
    "alignment-zero": (header(keys=1, rest=key(b"general.alignment", 4, bytes(4))), "alignment is 0"),
    "alignment-text": (header(keys=1, rest=key(b"general.alignment", 8, text(b"x"))), "alignment is 'x'"),
    "alignment-infinite": (
        header(keys=1, rest=key(b"general.alignment", 12, struct.pack("<d", float("inf")))),
        "alignment is inf",
    ),
}


@pytest.mark.parametrize(("content", "what"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=what) as refusal:
        GgufFile(path)
    assert refusal.value.where == str(path)


def test_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(header(version=2, keys=1, rest=SMALL_KEYS))
    assert GgufFile(tmp_path / "x.gguf").metadata == {"key": 7}


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(header(keys=1, rest=key(b"\xff", 4, bytes(4))))
    assert list(GgufFile(tmp_path / "x.gguf").metadata.values()) == [0]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        GgufFile(tmp_path / "no.gguf")


def test_a_real_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content, path = REAL.read_bytes(), tmp_path / "x.gguf"
    path.write_bytes(content)
    for size in range(len(content) - 1, 0, -997):
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(ModelError):
            GgufFile(path)


def test_flipped_bits_in_the_header_never_crash_nor_allocate_absurdly() -> None:
    script = """
import random, tempfile
from pathlib import Path
import gguf
from apr_falsify.errors import AprFalsifyError
from apr_falsify.formats.weights import open_model
content = Path(sys.argv[1]).read_bytes()
end = min(t.data_offset for t in gguf.GGUFReader(sys.argv[1]).tensors)
path = Path(tempfile.mkdtemp()) / "x.gguf"
used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
signal.alarm(40)
rng, opened, refused = random.Random(0), 0, 0
for _ in range(400):
    broken = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        broken[rng.randrange(4, end)] ^= 1 << rng.randrange(8)
    path.write_bytes(broken)
    try:
        weights = open_model(path).weights
        for tensor in weights.tensors.values():
            tensor.rows(0, 1)
        weights.geometry.dims(3)
        opened += 1
    except AprFalsifyError:
        refused += 1
path.unlink(); path.parent.rmdir()
print(opened + refused, opened > 20, refused > 20)
"""
    done = run_script(script, REAL)
    assert done.stdout.strip() == "400 True True", done.stderr
