"""Quantised checkpoints that were written wrongly: what is changed in the tensors of their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Parts = dict[str, npt.NDArray[np.generic]]
"""Name of a tensor in a file -> what its bits hold; small floats as bytes."""

PartsEdit = Callable[[Parts, int], None]
"""Changes the tensors of a checkpoint in place, given a layer."""

PartChange = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


def every(part: str, change: PartChange) -> PartsEdit:
    """Change a part of every linear layer."""

    def edit(held: Parts, layer: int) -> None:
        for name in _named(held, part):
            held[name] = np.ascontiguousarray(change(held[name]))

    return edit


def _named(held: Parts, part: str) -> Iterator[str]:
    yield from [name for name in held if name.endswith(f"_proj.{part}")]


def one_layer(module: str, part: str, change: PartChange) -> PartsEdit:
    """Change a part of one linear layer."""

    def edit(held: Parts, layer: int) -> None:
        name = next(name for name in _named(held, part) if f".{layer}." in name and f".{module}." in name)
        held[name] = np.ascontiguousarray(change(held[name]))

    return edit


def fields_plus(step: int) -> PartChange:
    """Add to every four-bit field of words, each by itself."""

    def change(words: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        octets = np.ascontiguousarray(words).view(np.uint8).astype(np.int16)
        low, high = (octets & 15) + step, (octets >> 4) + step
        return ((low & 15) | ((high & 15) << 4)).astype(np.uint8).view(words.dtype)

    return change


def halves_exchanged(words: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Exchange the two codes of each byte."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    return ((octets >> 4) | (octets << 4)).astype(np.uint8).view(words.dtype)


def places_taken(order: tuple[int, ...]) -> PartChange:
    """Put the eight codes of each word in other places."""

    def change(words: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        wide = np.ascontiguousarray(words).view(np.uint32)
        moved = np.zeros_like(wide)
        for at, source in enumerate(order):
            moved |= ((wide >> np.uint32(4 * source)) & np.uint32(15)) << np.uint32(4 * at)
        return moved.view(words.dtype)

    return change


def reciprocal(scales: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Store 1 / scale."""
    return np.asarray(1 / scales.astype(np.float64), dtype=scales.dtype)


def rolled(axis: int) -> PartChange:
    """Shift by one."""
    return lambda held: np.roll(held, 1, axis=axis)


def ordered(index: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Put groups in order."""
    return np.sort(index)


def transposed(held: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Write the transpose in the same shape."""
    return held.T.reshape(held.shape)


def set_to(value: float) -> PartChange:
    """Write one value."""
    return lambda held: np.full_like(held, value)


def plus(step: int) -> PartChange:
    """Add to every number."""
    return lambda held: (held.astype(np.int64) + step).astype(held.dtype)


def multiplied(factor: float, at: tuple[slice | int, ...] = (slice(None),)) -> PartChange:
    """Multiply some values."""

    def change(held: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        made = held.astype(np.float64)
        made[at] *= factor
        return made.astype(held.dtype)

    return change


def row_before(at: int) -> PartChange:
    """Write the row before a row once more."""

    def change(held: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        made = held.copy()
        made[at] = held[at - 1]
        return made

    return change
