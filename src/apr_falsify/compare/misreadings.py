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

    @cache
    def whole() -> Grid:
        return change(tensor.read(0, _height(tensor)))

    def read(start: int, stop: int) -> Grid:
        grid = whole()
        kept = _beside(grid, lambda each: each[start:stop])
        return replace(kept, codes=grid.codes[start:stop], scales=grid.scales[start:stop])

    return replace(tensor, read=read)


def _beside(grid: Grid, change: Callable[[F32], F32]) -> Grid:
    """Return ``grid`` with what it has beside its scales changed: zero points, or what is added instead."""
    return replace(
        grid,
        zeros=None if grid.zeros is None else change(grid.zeros),
        shifts=None if grid.shifts is None else change(grid.shifts),
    )


def _changes(tensor: GridTensor) -> Iterator[tuple[str, str, Change, str]]:
    first = tensor.read(0, 1)
    levels = _levels(tensor.type)
    has_zeros = first.zeros is not None or first.shifts is not None
    if has_zeros or levels:
        instead = _STORED_LESS_ONE if tensor.zeros_less_one else ""
        yield ZERO_POINT, "zero points that are one larger", _zeros_moved(1), instead
        yield ZERO_POINT, "zero points that are one smaller", _zeros_moved(-1), instead
    if has_zeros:
        yield ZERO_POINT, "no zero points", lambda grid: replace(grid, zeros=None, shifts=None), ""
    if levels and _is_signed(tensor):
        yield SIGN, "codes read without their sign", _unsigned(levels), ""
    elif has_zeros and levels:
        middle = levels / 2
        yield ZERO_POINT, f"{middle:g} for every zero point", _zeros_of(middle), ""
        yield SIGN, "codes read as two's complement", _signed(levels), ""
        yield SIGN, "codes read as two's complement, without zero points,", _signed(levels, zeros=False), ""
    yield SCALE, "the reciprocal of each scale", _reciprocal, ""
    if first.scales.shape[1] > 1:
        for step, which in ((1, "before"), (-1, "after")):
            yield GROUPS, f"scales and zero points of the group {which}", _rolled(step), ""
            yield GROUPS, f"scales of the group {which}", _rolled(step, zeros=False), ""
            if has_zeros:
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


def _is_signed(tensor: GridTensor) -> bool:
    """Whether any code is below 0: of a single row all may be above it."""
    starts = range(0, _height(tensor), _AT_ONCE)
    return any((tensor.read(at, min(at + _AT_ONCE, _height(tensor))).codes < 0).any() for at in starts)


_AT_ONCE = 64
"""So many rows are looked through at once."""


def _height(tensor: GridTensor) -> int:
    """Return how many rows a weight has, those of all experts."""
    return tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 3 else 1)


def _levels(kind: str) -> int:
    """Return how many codes a format of integers has, 0 for one of floats."""
    return 1 << int(kind.removeprefix("int")) if kind.startswith("int") else 0


def _zeros_moved(step: int) -> Change:
    def change(grid: Grid) -> Grid:
        zeros = np.zeros_like(grid.scales) if grid.zeros is None else grid.zeros
        return replace(grid, zeros=zeros + np.float32(step))

    return change


def _zeros_of(value: float) -> Change:
    return lambda grid: replace(grid, zeros=np.full_like(grid.scales, value), shifts=None)


def _signed(levels: int, zeros: bool = True) -> Change:
    def change(grid: Grid) -> Grid:
        codes = np.where(grid.codes >= levels / 2, grid.codes - levels, grid.codes).astype(np.float32)
        return replace(grid, codes=codes) if zeros else replace(grid, codes=codes, zeros=None, shifts=None)

    return change


def _unsigned(levels: int) -> Change:
    return lambda grid: replace(
        grid, codes=np.where(grid.codes < 0, grid.codes + levels, grid.codes).astype(np.float32)
    )


def _reciprocal(grid: Grid) -> Grid:
    with np.errstate(divide="ignore"):
        return replace(grid, scales=np.float32(1) / grid.scales)


def _rolled(step: int, *, scales: bool = True, zeros: bool = True) -> Change:
    def change(grid: Grid) -> Grid:
        moved = _beside(grid, lambda each: np.roll(each, step, axis=1)) if zeros else grid
        return replace(moved, scales=np.roll(grid.scales, step, axis=1)) if scales else moved

    return change


def _transposed(grid: Grid) -> Grid:
    turned = _beside(grid, lambda each: each.T.reshape(each.shape))
    return replace(turned, scales=grid.scales.T.reshape(grid.scales.shape))


def _retransposed(grid: Grid) -> Grid:
    shape = grid.scales.shape[::-1]
    return replace(_beside(grid, lambda each: each.reshape(shape).T), scales=grid.scales.reshape(shape).T)


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
    "codes taken in the order of AWQ the wrong way round": (0, 2, 4, 6, 1, 3, 5, 7),
}
"""Name of an order -> at which place of a word of eight codes each of eight neighbours is."""


def _packings(packing: PackedOrder) -> Iterator[tuple[str, str, Change, str]]:
    places = packing.order
    if packing.axis == "parts":
        yield NIBBLES, "codes of a byte taken from the highest bits down", _other_parts(len(places)), ""
        yield NIBBLES, "codes of a byte taken for neighbours", _parts_as_neighbours(len(places)), ""
        return
    for says, order in _WORD_ORDERS.items():
        usual = order if len(places) == len(order) else order[: len(places)]
        if usual == places or sorted(usual) != sorted(places):
            continue
        # What is taken for neighbour i lies where another neighbour's code is.
        taken = np.array([places.index(at) for at in usual])
        yield NIBBLES, says, _repacked(packing.axis, taken), ""


def _other_parts(count: int) -> Change:
    return lambda grid: _reordered(grid, count, lambda parts: parts[::-1])


def _parts_as_neighbours(count: int) -> Change:
    return lambda grid: _reordered(grid, count, lambda parts: parts.transpose(1, 2, 0))


def _reordered(grid: Grid, count: int, order: Callable[[F32], F32]) -> Grid:
    """Return ``grid`` with its codes, [parts, rows of groups, in of a group], in another order."""
    size = grid.codes.shape[1] // grid.scales.shape[1]
    if grid.codes.size % (count * size):  # the last byte row is not full: its codes are not all there
        return grid
    return replace(grid, codes=order(grid.codes.reshape(count, -1, size)).reshape(grid.codes.shape))


def _repacked(axis: str, taken: Indices) -> Change:
    def change(grid: Grid) -> Grid:
        if axis == "in":
            return replace(grid, codes=grid.codes[:, _within_words(grid.codes.shape[1], taken)])
        rows = _within_words(len(grid.codes), taken)
        return replace(_beside(grid, lambda each: each[rows]), codes=grid.codes[rows])

    return change


def _within_words(count: int, taken: Indices) -> Indices:
    whole = np.arange(count // len(taken) * len(taken)).reshape(-1, len(taken))[:, taken].reshape(-1)
    return np.concatenate((whole, np.arange(len(whole), count)))
