"""How one stored array holds a stage: axes that lie in one, a slice of an axis, kv heads that are repeated.

ffn_up:
  from: "L{layer}.gate_up"
  axes: [tokens, ffn]
  take: {ffn: [80, 160]}                     # the second half of a longer axis; a third number is a step
k_post_rope:
  from: "L{layer}.k"
  axes: [tokens, [kv_heads, repeats, head_dim]]   # three axes in one; each kv head once for its queries
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.subjects.foreign import ForeignArray

REPEATS = "repeats"
"""The axis of the copies of a kv head, one for each query head that reads it."""

Axis = str | tuple[str, ...]
"""An axis of an array: a word, or the words of several that lie in one, the slowest first."""

Slice = tuple[int, int, int]
"""Start, stop and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How an array lies where plain axes do not say it.

    Attributes:
        axes: its axes, slowest first.
        take: axis word -> which of its entries are the stage's; it is as long as the array has it.

    """

    axes: tuple[Axis, ...]
    take: Mapping[str, Slice] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether its axes say all."""
        return not self.take and all(isinstance(axis, str) and axis != REPEATS for axis in self.axes)

    @property
    def words(self) -> tuple[str, ...]:
        """The axes that are left once it is unfolded."""
        return tuple(word for axis in self.axes for word in words_of(axis) if word != REPEATS)


def words_of(axis: Axis) -> tuple[str, ...]:
    """Return the words of one axis."""
    return (axis,) if isinstance(axis, str) else axis


def unfolded(
    values: npt.NDArray[Any], stored: Stored, sizes: Mapping[str, int]
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return an array with each axis by itself, its slice taken and its copies left out, and its axes.

    Raises:
        TraceError: it has other axes, an axis does not divide so, or the copies of a kv head differ.

    """
    if values.ndim != len(stored.axes):
        raise TraceError(f"an array of {values.ndim} axes", expected=f"{len(stored.axes)}")
    shape: list[int] = []
    words: list[str] = []
    for size, axis in zip(values.shape, stored.axes, strict=True):
        shape += _split(size, axis, stored.take, sizes)
        words += words_of(axis)
    values = values.reshape(shape)
    for word, (start, stop, step) in stored.take.items():
        values = values[(slice(None),) * words.index(word) + (slice(start, stop, step),)]
    if REPEATS not in words:
        return values, tuple(words)
    at = words.index(REPEATS)
    first = values.take(0, axis=at)
    if not np.array_equal(values, np.broadcast_to(np.expand_dims(first, at), values.shape), equal_nan=True):
        raise TraceError(
            "the copies of a kv head differ",
            expected=f"equal values along the axis {REPEATS}",
            remedy="name the array before its heads are repeated, or leave the stage out",
        )
    return first, tuple(word for word in words if word != REPEATS)


def unfolded_array(array: ForeignArray, stored: Stored, sizes: Mapping[str, int]) -> ForeignArray:
    """Return an array as :func:`unfolded` makes it.

    Raises:
        TraceError: see there.

    """
    try:
        values, _ = unfolded(array.load().reshape(array.shape), stored, sizes)
    except TraceError as error:
        error.what = f"{array.name!r}: {error.what}"
        raise
    return replace(array, shape=values.shape, load=lambda: np.ascontiguousarray(values))


def _split(size: int, axis: Axis, take: Mapping[str, Slice], sizes: Mapping[str, int]) -> list[int]:
    """Return the sizes of the words of one axis; one that is taken from has what the others leave."""
    words = words_of(axis)
    free = [word for word in words if word in take]
    if not free and isinstance(axis, str) and axis != REPEATS:
        return [size]  # compared with what it should be where it is read
    known = math.prod(_size(word, sizes) for word in words if word not in take)
    stop = max((take[word][1] for word in free), default=0)
    left, rest = divmod(size, max(known, 1))
    if rest or (left != 1 if not free else left < stop):
        raise TraceError(
            f"an axis of {size} is not [{', '.join(words)}]",
            expected=f"{known} times at least {stop}" if free else f"{known}",
        )
    return [left if word in take else _size(word, sizes) for word in words]


def _size(word: str, sizes: Mapping[str, int]) -> int:
    return sizes["groups"] if word == REPEATS else sizes.get(word, 1)
