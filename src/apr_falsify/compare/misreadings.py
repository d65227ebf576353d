"""What readers and writers make of a quantised weight by mistake: a grid, and how else it may be understood.

The same hypotheses serve twice. Where a subject's tensor is not the oracle's, one of them may make it so:
then the file was written wrongly. Where a product is not what its inputs make it, one of them may be the
weight that the subject multiplied with: then it reads the file wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from apr_falsify.formats.quantised.grid import F32, Grid, GridTensor, Indices, PackedOrder, even_groups
from apr_falsify.formats.quantised.solved import solved
from apr_falsify.formats.tensors import PlainTensor, Tensor
from apr_falsify.formats.views import ViewedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Misreading:
    """A quantised weight, understood otherwise.

    Attributes:
        name: the cause's identifier.
        says: the hypothesis, the subject of a sentence that goes on with "fits".
        instead: what would have been right, a clause, or empty.
        tensor: the weight under the hypothesis.

    """

    name: str
    says: str
    tensor: Tensor
    instead: str = ""


Change = Callable[[Grid], Grid]

ZERO_POINT, SCALE, GROUPS, ORDER, NIBBLES, SIGN = (
    "zero-point",
    "reciprocal-scale",
    "group-order",
    "act-order",
    "nibble-order",
    "code-sign",
)
"""The causes that are about how a quantised weight is understood."""

_STORED_LESS_ONE = "GPTQ files of the first format store each zero point less one"


def misreadings(tensor: Tensor) -> Iterator[Misreading]:
    """Yield what else may be made of a weight; nothing where it is no quantised one.

    A weight of plain numbers that lies on a grid was multiplied out before: its steps are solved.
    """
    if isinstance(tensor, ViewedTensor):
        for found in misreadings(tensor.base):
            yield replace(found, tensor=ViewedTensor(base=found.tensor, view=tensor.view))
        return
    grid = solved(tensor) if isinstance(tensor, PlainTensor) else tensor
    if not isinstance(grid, GridTensor):
        return
    for name, says, change, instead in _changes(grid):
        yield Misreading(name=name, says=says, tensor=_changed(grid, change), instead=instead)


def _changed(tensor: GridTensor, change: Change) -> GridTensor:
    """Return ``tensor`` with its whole grid changed: some changes exchange rows."""
    height = tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 3 else 1)

    @cache
    def whole() -> Grid:
        return change(tensor.read(0, height))

    def read(start: int, stop: int) -> Grid:
        grid = whole()
        zeros = None if grid.zeros is None else grid.zeros[start:stop]
        return replace(grid, codes=grid.codes[start:stop], scales=grid.scales[start:stop], zeros=zeros)

    return replace(tensor, read=read)


def _changes(tensor: GridTensor) -> Iterator[tuple[str, str, Change, str]]:
    first = tensor.read(0, 1)
    levels = _levels(tensor.type)
    if first.zeros is not None or levels:
        yield ZERO_POINT, "zero points that are one larger", _zeros_moved(1), _STORED_LESS_ONE
        yield ZERO_POINT, "zero points that are one smaller", _zeros_moved(-1), _STORED_LESS_ONE
    if first.zeros is not None:
        yield ZERO_POINT, "no zero points", lambda grid: replace(grid, zeros=None), ""
    if first.zeros is not None and levels:
        middle = levels / 2
        yield ZERO_POINT, f"{middle:g} for every zero point", _zeros_of(middle), ""
        yield SIGN, "codes read as two's complement", _signed(levels), ""
        yield SIGN, "codes read as two's complement, without zero points,", _signed(levels, zeros=False), ""
    yield SCALE, "the reciprocal of each scale", _reciprocal, ""
    if first.scales.shape[1] > 1:
        for step, which in ((1, "before"), (-1, "after")):
            yield GROUPS, f"scales and zero points of the group {which}", _rolled(step), ""
            yield GROUPS, f"scales of the group {which}", _rolled(step, zeros=False), ""
            if first.zeros is not None:
                yield GROUPS, f"zero points of the group {which}", _rolled(step, scales=False), ""
        yield GROUPS, "scales and zero points stored [groups, out] and read as [out, groups]", _transposed, ""
        yield (
            GROUPS,
            "scales and zero points stored [out, groups] and read as [groups, out]",
            _retransposed,
            "",
        )
    if tensor.block_rows > 1:
        for says, turned in _TURNED_BLOCKS.items():
            yield GROUPS, says, _blocks_turned(tensor.block_rows, turned), ""
    if (np.diff(first.groups) < 0).any():
        yield from _act_orders(first.groups)
    if tensor.packing is not None:
        yield from _packings(tensor.packing)


def _levels(kind: str) -> int:
    """Return how many codes a format of integers has, 0 for one of floats."""
    return 1 << int(kind.removeprefix("int")) if kind.startswith("int") else 0


def _zeros_moved(step: int) -> Change:
    def change(grid: Grid) -> Grid:
        zeros = np.zeros_like(grid.scales) if grid.zeros is None else grid.zeros
        return replace(grid, zeros=zeros + np.float32(step))

    return change


def _zeros_of(value: float) -> Change:
    return lambda grid: replace(grid, zeros=np.full_like(grid.scales, value))


def _signed(levels: int, zeros: bool = True) -> Change:
    def change(grid: Grid) -> Grid:
        codes = np.where(grid.codes >= levels / 2, grid.codes - levels, grid.codes).astype(np.float32)
        return replace(grid, codes=codes, zeros=grid.zeros if zeros else None)

    return change


def _reciprocal(grid: Grid) -> Grid:
    with np.errstate(divide="ignore"):
        return replace(grid, scales=np.float32(1) / grid.scales)


def _rolled(step: int, *, scales: bool = True, zeros: bool = True) -> Change:
    def change(grid: Grid) -> Grid:
        own = grid.zeros
        moved = own if own is None or not zeros else np.roll(own, step, axis=1)
        return replace(
            grid, scales=np.roll(grid.scales, step, axis=1) if scales else grid.scales, zeros=moved
        )

    return change


def _transposed(grid: Grid) -> Grid:
    zeros = None if grid.zeros is None else grid.zeros.T.reshape(grid.zeros.shape)
    return replace(grid, scales=grid.scales.T.reshape(grid.scales.shape), zeros=zeros)


def _retransposed(grid: Grid) -> Grid:
    turned = grid.scales.shape[::-1]
    zeros = None if grid.zeros is None else grid.zeros.reshape(turned).T
    return replace(grid, scales=grid.scales.reshape(turned).T, zeros=zeros)


_TURNED_BLOCKS: Mapping[str, Callable[[F32], F32]] = {
    "scales of blocks stored [in, out] and read as [out, in]": lambda blocks: blocks.T.reshape(blocks.shape),
    "scales of blocks stored [out, in] and read as [in, out]": lambda blocks: (
        blocks.reshape(blocks.shape[::-1]).T
    ),
}
"""What is made of the scales of blocks, [rows of blocks, columns of blocks]."""


def _blocks_turned(height: int, turned: Callable[[F32], F32]) -> Change:
    def change(grid: Grid) -> Grid:
        scales = np.repeat(turned(grid.scales[::height]), height, axis=0)
        return replace(grid, scales=scales[: len(grid.scales)])

    return change


def _act_orders(groups: Indices) -> Iterator[tuple[str, str, Change, str]]:
    size = len(groups) // (int(groups.max()) + 1)
    order = np.argsort(groups, kind="stable")

    def in_sequence(grid: Grid) -> Grid:
        return replace(grid, groups=even_groups(len(groups), size))

    def of_columns(columns: Indices) -> Change:
        return lambda grid: replace(grid, codes=grid.codes[:, columns], groups=grid.groups[columns])

    yield ORDER, "groups of consecutive channels, g_idx not applied,", in_sequence, ""
    yield ORDER, "channels left in the order in which they were quantised", of_columns(order), ""
    yield ORDER, "channels put into the order of g_idx twice", of_columns(np.argsort(order)), ""


_WORD_ORDERS: Mapping[str, tuple[int, ...]] = {
    "codes taken from the lowest bits up": (0, 1, 2, 3, 4, 5, 6, 7),
    "the two codes of each byte exchanged": (1, 0, 3, 2, 5, 4, 7, 6),
    "codes taken from the highest bits down": (7, 6, 5, 4, 3, 2, 1, 0),
    "codes taken in the order of AWQ": (0, 4, 1, 5, 2, 6, 3, 7),
}
"""Name of an order -> at which place of a word of eight codes each of eight neighbours is."""


def _packings(packing: PackedOrder) -> Iterator[tuple[str, str, Change, str]]:
    places = packing.order
    for says, order in _WORD_ORDERS.items():
        usual = order if len(places) == len(order) else order[: len(places)]
        if usual == places or sorted(usual) != sorted(places):
            continue
        # What is taken for neighbour i lies where another neighbour's code is.
        taken = np.array([places.index(at) for at in usual])
        yield NIBBLES, says, _repacked(packing.axis, taken), ""


def _repacked(axis: str, taken: Indices) -> Change:
    def change(grid: Grid) -> Grid:
        if axis == "in":
            return replace(grid, codes=grid.codes[:, _within_words(grid.codes.shape[1], taken)])
        rows = _within_words(len(grid.codes), taken)
        zeros = None if grid.zeros is None else grid.zeros[rows]
        return replace(grid, codes=grid.codes[rows], zeros=zeros)

    return change


def _within_words(count: int, taken: Indices) -> Indices:
    whole = np.arange(count // len(taken) * len(taken)).reshape(-1, len(taken))[:, taken].reshape(-1)
    return np.concatenate((whole, np.arange(len(whole), count)))
