"""Recordings that would cost far more than they are: headers that lie, small archives that hold gigabytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.errors import TraceError
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.foreign import MOST_ARRAYS
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.recorded import open_recorded
from tests.fuzz.gauge import held, measured
from tests.unit.subjects.dumps import TOKENS, apr_trace, dump_of, plain_mapping, target, write

SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"
LARGE = 192 << 20
"""Bytes that a bomb would take; the limit is four times the file and 64 MB."""

HEADERS: Mapping[str, str] = {
    "keys-of-several-types": "{'descr': '<f4', 1: 2}",
    "another-key": SOUND.replace("(3,),", "(3,), 'more': 1"),
    "cut-off": SOUND[:40],
    "open-brackets": "(" * 500,
    "signs-without-end": "-" * 9000 + "1",
    "of-python-2": SOUND.replace("(3,)", "(3L,)"),
    "a-list": "[1, 2]",
    "lists-in-a-set": "{(), ()}",
    "code": "__import__('os')",
    "no-text": "\0",
    "negative": SOUND.replace("(3,)", "(-3,)"),
    "a-truth-value": SOUND.replace("(3,)", "(True, 3)"),
    "a-float": SOUND.replace("(3,)", "(3.0,)"),
    "a-shape-as-a-list": SOUND.replace("(3,)", "[3]"),
    "order-as-a-number": SOUND.replace("False", "1"),
    "no-type": SOUND.replace("'<f4'", "'<f3'"),
    "type-of-a-type": SOUND.replace("'<f4'", "('<f4', ('<f4', 2))"),
    "fields-twice": SOUND.replace("'<f4'", "[('a', '<f4'), ('a', '<f4')]"),
}


def npy(header: str, data: bytes = bytes(12), version: bytes = b"\1\0") -> bytes:
    width = 2 if version[0] == 1 else 4
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text + data


@pytest.mark.parametrize("header", HEADERS.values(), ids=list(HEADERS))
def test_a_header_that_describes_no_array_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header))
    with pytest.raises(TraceError, match="describes no array"):
        read_dump(tmp_path)


@pytest.mark.parametrize("version", [b"\0\0", b"\4\0", b"\xff\xff"])
def test_a_version_that_numpy_does_not_write_is_refused(tmp_path: Path, version: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(npy(SOUND, version=version))
    with pytest.raises(TraceError, match="version 1, 2 or 3"):
        read_dump(tmp_path)


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0"])
def test_every_version_that_numpy_writes_is_read(tmp_path: Path, version: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(npy(SOUND, np.arange(3, dtype="<f4").tobytes(), version))
    array = read_dump(tmp_path)["x"]
    assert (array.kind, array.shape) == ("f32", (3,))
    assert array.load().tolist() == [0, 1, 2]


def zeros_behind(start: bytes, size: int = LARGE) -> Callable[[zipfile.ZipFile, str], None]:
    """Return what writes a member of ``size`` zeros after ``start``: some 200 KB in the archive."""

    def put(archive: zipfile.ZipFile, name: str) -> None:
        with archive.open(name, "w") as file:
            file.write(start)
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))

    return put


def packed(folder: Path, said: Mapping[str, Any], put: Mapping[str, Callable[..., None]]) -> Path:
    """Write a compressed recording in which some arrays are written by ``put``."""
    path = write(folder, dump_of(apr_trace()), said)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            if name not in put:
                content = io.BytesIO()
                np.save(content, values)
                archive.writestr(f"{name}.npy", content.getvalue(), zipfile.ZIP_STORED)
        for name, write_it in put.items():
            write_it(archive, f"{name}.npy")
    return path


def header_of(shape: str, kind: str = "<f4") -> bytes:
    return npy(SOUND.replace("(3,)", shape).replace("<f4", kind), b"")


BOMBS: Mapping[str, tuple[str, bytes, str]] = {
    "padded-keys": ("L0.attn_softmax", header_of(f"(8, 6, {LARGE // 192})"), "the arrays that are read have"),
    "token-ids": ("token_ids", header_of(f"({LARGE // 8},)", "<i8"), "token ids"),
    "few-token-ids": ("token_ids", header_of("(6,)", "<i8"), "announces"),
    "another-shape": ("L0.attn_norm", header_of(f"(6, {LARGE // 24})"), "has the shape"),
    "header": ("L0.attn_norm", b"\x93NUMPY\2\0\xff\xff\xff\x0b", "more than 10000"),
}


def said_of_padded_keys() -> dict[str, Any]:
    said = {**plain_mapping(apr_trace()), "tokens": "token_ids"}
    said["stages"]["attn_softmax"]["layout"] = ["padded-keys"]
    return said


def ids(archive: zipfile.ZipFile, name: str) -> None:
    archive.writestr(name, header_of("(6,)", "<i8") + np.array(TOKENS, "<i8").tobytes())


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_archive_does_not_fill_the_memory(tmp_path: Path, bomb: str) -> None:
    name, start, said = BOMBS[bomb]
    path = packed(tmp_path, said_of_padded_keys(), {"token_ids": ids, name: zeros_behind(start)})
    with pytest.raises(TraceError, match=said):
        open_recorded(target(path))
    assert_cheap(lambda: open_recorded(target(path)), path)


def test_the_same_archive_without_a_bomb_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path, said_of_padded_keys(), {"token_ids": ids})
    assert open_recorded(target(path)).trace.tokens == TOKENS


def assert_cheap(read: Callable[[], object], path: Path) -> None:
    """Refused within 2 s, and without more memory than four times the file and 64 MB."""
    size = path.stat().st_size
    assert size < LARGE / 20
    result = measured(read, size, held())
    assert (result.ended, result.defect) == ("TraceError", None)


def test_a_small_capture_of_llama_cpp_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        zeros_behind(header_of(f"(1, 1, {LARGE // 1024}, 256)"))(archive, "attn_norm-0.npy")

    with pytest.raises(TraceError, match="the arrays that are read have"):
        open_llama_cpp(target(path, tokens=TOKENS))
    assert_cheap(lambda: open_llama_cpp(target(path, tokens=TOKENS)), path)


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_more_arrays_than_any_run_has_are_not_looked_at(tmp_path: Path, form: str) -> None:
    names = [f"{number}.npy" for number in range(MOST_ARRAYS + 1)]
    if form == "npz":
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
    else:
        for name in names:
            (tmp_path / name).touch()
    with pytest.raises(TraceError, match="more than 10000"):
        read_dump(tmp_path / "x.npz" if form == "npz" else tmp_path)
