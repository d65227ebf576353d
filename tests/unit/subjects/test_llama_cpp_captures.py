"""A raw capture's file: whatever is wrong with the archive or an array of it is told by one type."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import TraceError
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from tests.unit.subjects.dumps import TOKENS, target

NODE = "attn_norm-0.npy"


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def written(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


SOUND = npy(np.ones((1, 1, 6, 256), np.float32))
BROKEN: dict[str, tuple[bytes, str]] = {
    "header-of-several-types": (SOUND.replace(b"'descr'", b"12345678"[:7]), "describes no array"),
    "header-of-python-2": (SOUND.replace(b"(1, 1, 6, 256)", b"(1, 1, 6, 25L)"), "describes no array"),
    "shape-of-terabytes": (SOUND.replace(b"(1, 1, 6, 256), }", b"(1<<40,), }      "), "describes no array"),
    "shape-of-more-than-there-is": (SOUND.replace(b"6, 256", b"9, 256"), "announces"),
    "texts": (npy(np.array(["a", "b"])), "no array of numbers"),
    "truth-values": (npy(np.ones((1, 1, 6, 256), bool)), "no array of numbers"),
}


@pytest.mark.parametrize(("data", "said"), BROKEN.values(), ids=list(BROKEN))
def test_an_array_that_is_none_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        open_llama_cpp(target(written(tmp_path / "graph.npz", (NODE, data)), tokens=TOKENS))


def test_a_node_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = written(tmp_path / "graph.npz", (NODE, SOUND), (NODE, SOUND))
    with pytest.raises(TraceError, match="'attn_norm-0' is there twice"):
        open_llama_cpp(target(path, tokens=TOKENS))


def flagged(at: int, bits: int) -> Callable[[bytes], bytes]:
    """Return what sets bits in a member's entry of the directory, and where they stand in its own header."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for signature, place in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
            changed[data.index(signature) + place] |= bits
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flagged(6, 1), "encrypted"),
        (flagged(6, 32), "patched data"),
        (flagged(8, 0x63), "compression method"),
    ],
    ids=["encrypted", "patched", "unknown-method"],
)
def test_an_archive_that_is_not_read_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = written(tmp_path / "graph.npz", (NODE, SOUND))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError, match=said):
        open_llama_cpp(target(path, tokens=TOKENS))
