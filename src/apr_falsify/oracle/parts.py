"""What each pass shows of a stage, in a file until the last one has run: all stages at once are many."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import OutputError
from apr_falsify.model.stages import Key

FloatArray = npt.NDArray[np.floating[Any]]

_IN_MEMORY = 16 << 20
"""Bytes that need no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where an array lies."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Parts:
    """The parts of stages, in the order in which passes show them."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115, it is closed below
        self._places: dict[Key, list[_Place]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written is still in its buffer
            self._file.close()

    def add(self, key: Key, values: FloatArray) -> None:
        """Keep what a pass shows of a stage.

        Raises:
            OutputError: there is no room for it.

        """
        place = _Place(start=self._file.tell(), dtype=values.dtype, shape=values.shape)
        try:
            self._file.write(np.ascontiguousarray(values).tobytes())
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"what the passes show cannot be kept: {error.strerror}",
                where=Path(tempfile.gettempdir()),
                remedy="make room there, or set TMPDIR to another folder",
            ) from error
        self._places.setdefault(key, []).append(place)

    def count(self, key: Key) -> int:
        """Return in how many passes a stage was shown so far."""
        return len(self._places.get(key, ()))

    @property
    def shown(self) -> tuple[Key, ...]:
        """The stages, in the order in which they were first shown."""
        return tuple(self._places)

    def of(self, key: Key) -> list[FloatArray]:
        """Return the parts of a stage; they are read anew each time."""
        return [self._read(place) for place in self._places[key]]

    def _read(self, place: _Place) -> FloatArray:
        self._file.seek(place.start)
        size = int(np.prod(place.shape)) * place.dtype.itemsize
        return np.frombuffer(self._file.read(size), dtype=place.dtype).reshape(place.shape)
