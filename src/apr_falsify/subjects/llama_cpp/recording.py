"""A raw capture of llama.cpp's graph: a file made elsewhere, or written by the setting ``raw-capture``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.reading import opened_zip, unzipping
from apr_falsify.subjects.adoption import adopted_geometry, adopted_model, adopted_tokens, verify_tokens
from apr_falsify.subjects.foreign import (
    MOST_ARRAYS,
    NPY_MAGIC,
    ForeignArray,
    check_expansion,
    members_of,
    npz_array,
    read_member,
)
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp.graph import Arrays, Reader, occurrences, stages_of_capture
from apr_falsify.subjects.llama_cpp.nodes import FLASH_HIDES, NODES, check_family, nodes_of
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import StageArray, Trace

TOKENS = "token_ids"
"""The array of a raw capture that holds the ids that were run, where it has one."""


class Capture(Mapping[str, npt.NDArray[Any]]):
    """The arrays of a raw capture, each read from its file when it is requested.

    llama.cpp's nodes are f32: one in f16 was rounded when it was saved.

    Args:
        archive: the opened ``.npz``.
        path: where it lies.

    Raises:
        ValueError: something in it is no array, or there twice.

    Attributes:
        halved: the names of those read that were saved in f16.

    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self._unpacked: dict[str, int] = {}
        self._arrays: dict[str, ForeignArray] = {}
        for member in members_of(archive):
            array = npz_array(archive, member, partial(self._load, member))
            if array.name in self._arrays:
                raise ValueError(f"the array {array.name!r} is there twice")
            self._arrays[array.name] = array
        self.halved: set[str] = set()

    def _load(self, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
        self._unpacked[member.filename] = member.file_size
        check_expansion(self._path, sum(self._unpacked.values()))
        return read_member(self._archive, member)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Read one array; a ``KeyError`` where there is none of that name."""
        found = self._arrays[name]
        if found.kind[0] not in "fiu":
            raise TraceError(f"{name} is no array of numbers", where=self._path)
        with _reading(self._path), unzipping():
            array = found.load()
        if array.dtype == np.float16:
            self.halved.add(name)
            return array.astype(np.float32)
        return array

    def __contains__(self, name: object) -> bool:
        """Whether there is an array of that name; it is not read."""
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        raise TraceError(
            f"not a capture of llama.cpp's graph: {error}", where=path, expected="an .npz of plain arrays"
        ) from error


@contextmanager
def opened_capture(path: Path) -> Iterator[Capture]:
    """Open a raw capture.

    Raises:
        TraceError: not an ``.npz`` of plain arrays.

    """
    with ExitStack() as opened:
        with _reading(path):
            with path.open("rb") as file:
                if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
                    raise ValueError("a single array")
            archive = opened.enter_context(opened_zip(path, MOST_ARRAYS))
            with unzipping():
                capture = Capture(archive, path)
        yield capture


def open_recording(target: Target) -> RecordedSubject:
    """Open the raw capture at ``target``.

    Raises:
        TraceError: not a capture, or nothing says which model was run.
        TokensError: the token ids are missing or not those of the capture.

    """
    geometry, interleaved = adopted_geometry(target)
    check_family(geometry, target.path)
    with opened_capture(target.path) as arrays:
        return RecordedSubject(trace=_trace(target, arrays, geometry, interleaved))


def _trace(target: Target, arrays: Capture, geometry: Geometry, interleaved: bool) -> Trace:
    rows = embedding_rows(arrays, geometry, target.path)
    tokens = _tokens(target, arrays, rows, geometry)
    verified = verify_tokens(target, rows, tokens)
    stages = dict(stages_of_capture(arrays, geometry, len(tokens), interleaved, target.path))
    if not stages:
        known = (name for node in NODES.values() for name in node.names)
        raise TraceError("no node of it is a stage", where=target.path, expected=", ".join(known))
    return Trace(
        provenance=Provenance(
            runtime="llama-cpp",
            driver=f"apr-falsify {__version__} (recorded)",
            model=adopted_model(target),
            saved_as=_saved_as(arrays, stages),
            absent=_absent(arrays, stages),
            created=utc_now(),
        ),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verified,
    )


def _saved_as(arrays: Capture, stages: Mapping[Key, StageArray]) -> dict[str, str]:
    """Return the stages any part of which was saved in f16."""
    return {
        name: "f16"
        for layer, name in stages
        for node in nodes_of([Key(layer, name)])
        for key in occurrences(arrays, node)
        if key in arrays.halved
    }


def _absent(arrays: Arrays, stages: Mapping[Key, StageArray]) -> dict[str, str]:
    """Say why a recording has no scores although it has what comes of them."""
    mixed = [layer for layer, name in stages if name == "attention"]
    hidden = nodes_of([Key(layer, name) for layer in mixed for name in FLASH_HIDES])
    if not mixed or any(node in arrays for node in hidden):
        return {}
    why = "flash attention computes it within one operation, or its node was not recorded"
    return dict.fromkeys(FLASH_HIDES, why)


def embedding_rows(arrays: Arrays, geometry: Geometry, where: Path) -> npt.NDArray[Any] | None:
    """Return the rows [S, E] that the tokens were embedded to, ``None`` where they were not recorded."""
    names = [name for node in NODES["embedding"].names for name in occurrences(arrays, node)]
    reader = Reader(arrays=arrays, geometry=geometry, where=where)
    return reader.rows(names, geometry.hidden)[0] if names else None


def _tokens(
    target: Target, arrays: Arrays, rows: npt.NDArray[Any] | None, geometry: Geometry
) -> tuple[int, ...]:
    recorded = arrays.get(TOKENS)
    if recorded is None:
        ids = adopted_tokens(target, rows, geometry)
    else:
        ids = _whole(recorded.reshape(-1), target.path)
    outside = [token for token in ids if not 0 <= token < geometry.vocab]
    if outside or not ids:
        raise TokensError(
            f"token {outside[0]} is outside the vocabulary" if outside else f"{TOKENS} is empty",
            where=target.path,
            expected=f"ids from 0 to {geometry.vocab - 1}",
            remedy="name the model that was recorded, and the ids that it ran",
        )
    if recorded is not None and target.tokens not in (None, ids):
        raise TokensError(
            "--tokens are not those of the capture", where=target.path, expected=f"{list(ids)}, its {TOKENS}"
        )
    return ids


def _whole(recorded: npt.NDArray[Any], where: Path) -> tuple[int, ...]:
    """Return token ids as whole numbers.

    Raises:
        TokensError: they are none.

    """
    if not np.array_equal(recorded, np.trunc(recorded)) or not np.isfinite(recorded).all():
        raise TokensError(f"{TOKENS} holds other than whole numbers", where=where, expected="token ids")
    return tuple(int(token) for token in recorded)
