"""A quantised matrix: codes, of which groups share a scale and perhaps a zero point.

Whatever the scheme, a value is (code - zero) * scale, to which some add a shift. The code is an integer, or
what a table says of a small float's bits; a group is some columns of a row, a whole row, or a block of rows
and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Some rows of a quantised matrix, not multiplied out.

    Attributes:
        codes: what is multiplied, [rows, in].
        scales: the scale of each group, [rows, groups].
        zeros: the code that stands for 0 in each group, [rows, groups]; ``None`` where that is code 0.
        groups: the group of each column, [in].
        shifts: what is added to each product of a group, [rows, groups]; ``None`` where nothing is.

    """

    codes: F32
    scales: F32
    groups: Indices
    zeros: F32 | None = None
    shifts: F32 | None = None

    @property
    def values(self) -> F32:
        """The weights, [rows, in], each product rounded to f32."""
        codes = self.codes if self.zeros is None else self.codes - self.zeros[:, self.groups]
        with np.errstate(over="ignore", invalid="ignore"):  # scales that are no numbers are what they are
            values = np.asarray(codes * self.scales[:, self.groups], dtype=np.float32)
            return values if self.shifts is None else values + self.shifts[:, self.groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedOrder:
    """How several codes lie in one word.

    Attributes:
        axis: along which axis neighbours share a word: ``"in"`` or ``"out"``; ``"parts"`` where codes that
            share one are a part of all groups away from each other.
        order: at which place of its word each of these neighbours is, the lowest bits first.

    """

    axis: str
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTensor:
    """A quantised matrix [out, in], or [experts, out, in]; its rows are multiplied out as they are asked for.

    Attributes:
        name: the name of the weight that it stands for.
        type: its number format: ``int4``, ``fp8_e4m3``, ``nf4`` ...
        shape: its shape, always the output channels before the input channels.
        read: the grid of rows ``start`` to ``stop``, of all experts laid end to end.
        packing: how codes share a word, ``None`` where each has its own.
        block_rows: how many rows share their scales.
        zeros_less_one: whether files of its scheme may store each zero point less one.

    """

    name: str
    type: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Grid]
    packing: PackedOrder | None = None
    block_rows: int = 1
    zeros_less_one: bool = False

    def rows(self, start: int, stop: int) -> F32:
        """Return rows ``start`` to ``stop``, multiplied out in f32."""
        stop = min(stop, self.shape[0])
        start = min(start, stop)
        height = self.shape[1] if len(self.shape) == 3 else 1
        return self.read(start * height, stop * height).values.reshape(stop - start, *self.shape[1:])


def even_groups(width: int, size: int) -> Indices:
    """Return the group of each of ``width`` columns where each ``size`` of them are one."""
    return np.arange(width) // size


def of_blocks(blocks: npt.NDArray[Any], height: int, start: int, stop: int) -> npt.NDArray[Any]:
    """Return for rows ``start`` to ``stop`` what ``blocks`` [blocks, ...] holds for each ``height`` rows."""
    return np.asarray(blocks[np.arange(start, stop) // height])


def flat_vector(values: F32, rows: int) -> F32:
    """Return the scale of each of ``rows`` rows, [rows, 1], where there is one for all or one for each."""
    return np.broadcast_to(values.reshape(-1, 1), (rows, 1))
