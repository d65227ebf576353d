"""A raw capture of llama.cpp's graph: a file made elsewhere, or kept by the setting ``raw-capture``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.provenance import Provenance, utc_now
from apr_falsify.subjects.adoption import adopted_geometry, adopted_tokens, verify_tokens
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp.graph import NODES, Arrays, check_family, occurrences, stages_of_capture
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.trace import Trace

TOKENS = "token_ids"
"""The array of a raw capture that holds the ids that were run, where it has one."""


class Capture(Mapping[str, npt.NDArray[Any]]):
    """The arrays of a raw capture, each read from its file when it is asked for.

    Args:
        file: the opened ``.npz``.
        path: where it lies.

    """

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Read one array; a ``KeyError`` where there is none of that name."""
        if name not in self._file:
            raise KeyError(name)
        with _reading(self._path):
            array = self._file[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise TraceError(f"{name} is no array of numbers", where=self._path)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
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
            raw = opened.enter_context(path.open("rb"))  # NumPy itself leaves a broken file open
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            opened.enter_context(file)
        yield Capture(file, path)


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


def _trace(target: Target, arrays: Arrays, geometry: Geometry, interleaved: bool) -> Trace:
    rows = embedding_rows(arrays, geometry)
    tokens = _tokens(target, arrays, rows, geometry)
    verified = verify_tokens(target, rows, tokens)
    stages = dict(stages_of_capture(arrays, geometry, len(tokens), interleaved, target.path))
    if not stages:
        known = (name for names in NODES.values() for name in names)
        raise TraceError("no node of it is a stage", where=target.path, expected=", ".join(known))
    return Trace(
        provenance=Provenance(
            runtime="llama-cpp",
            driver=f"apr-falsify {__version__} (recorded)",
            model="" if target.model is None else str(target.model.path),
            created=utc_now(),
        ),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verified,
    )


def embedding_rows(arrays: Arrays, geometry: Geometry) -> npt.NDArray[Any] | None:
    """Return the rows [S, E] that the tokens were embedded to, ``None`` where they were not recorded."""
    names = [name for node in NODES["embedding"] for name in occurrences(arrays, node)]
    parts = [arrays[name].reshape(-1, geometry.hidden) for name in names]
    return np.concatenate(parts) if parts else None


def _tokens(
    target: Target, arrays: Arrays, rows: npt.NDArray[Any] | None, geometry: Geometry
) -> tuple[int, ...]:
    recorded = arrays.get(TOKENS)
    if recorded is None:
        return adopted_tokens(target, rows, geometry)
    ids = tuple(int(token) for token in recorded.reshape(-1))
    if target.tokens not in (None, ids):
        raise TokensError(
            "--tokens are not those of the capture", where=target.path, expected=f"{list(ids)}, its {TOKENS}"
        )
    return ids
