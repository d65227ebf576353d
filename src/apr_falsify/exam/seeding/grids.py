"""Quantised weights that are read wrongly: what readers make of codes, scales, zero points and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.exam.seeding.tensors import F32, Bench, Edit, Place
from apr_falsify.formats.quantised.grid import Grid, GridTensor, even_groups

PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")
"""The roles that are quantised."""

GridChange = Callable[[Grid], Grid]


def misread(change: GridChange, *roles: str) -> Edit:
    """Read the quantised weights of a layer, or those in some roles, wrongly."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        found: dict[Place, F32] = {}
        for role in roles or PRODUCTS:
            tensor = bench.weights.tensor(role, bench.layer)
            assert isinstance(tensor, GridTensor)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                found[role, bench.layer] = change(tensor.read(0, tensor.shape[0])).values
        return found

    return edit


def zeros_plus(step: int) -> GridChange:
    """Take zero points that are larger."""
    return lambda grid: replace(grid, zeros=_zeros(grid) + np.float32(step))


def _zeros(grid: Grid) -> F32:
    return np.zeros_like(grid.scales) if grid.zeros is None else grid.zeros


def zeros_left_out(grid: Grid) -> Grid:
    """Take the codes as they are."""
    return replace(grid, zeros=None)


def zeros_of(value: float) -> GridChange:
    """Take one zero point for all groups."""
    return lambda grid: replace(grid, zeros=np.full_like(grid.scales, value))


def twos_complement(grid: Grid) -> Grid:
    """Read codes of four bits as signed ones, without zero points."""
    return replace(grid, codes=((grid.codes + 8) % 16 - 8).astype(np.float32), zeros=None)


def scales_inverted(grid: Grid) -> Grid:
    """Divide by the scale."""
    return replace(grid, scales=np.float32(1) / grid.scales)


def scaled(factor: float) -> GridChange:
    """Take scales that are a factor off."""
    return lambda grid: replace(grid, scales=grid.scales * np.float32(factor))


def groups_shifted(*, zeros: bool = True) -> GridChange:
    """Take the scale of the group before, and its zero point or not."""

    def change(grid: Grid) -> Grid:
        moved = grid.zeros if grid.zeros is None or not zeros else np.roll(grid.zeros, 1, axis=1)
        return replace(grid, scales=np.roll(grid.scales, 1, axis=1), zeros=moved)

    return change


def rows_shifted(grid: Grid) -> Grid:
    """Take the scale of the row before."""
    return replace(grid, scales=np.roll(grid.scales, 1, axis=0))


def zeros_shifted(grid: Grid) -> Grid:
    """Take the zero point of the group before."""
    return replace(grid, zeros=np.roll(_zeros(grid), 1, axis=1))


def groups_in_order(grid: Grid) -> Grid:
    """Do not apply ``g_idx``."""
    count = int(grid.groups.max()) + 1
    return replace(grid, groups=even_groups(len(grid.groups), len(grid.groups) // count))


def channels_as_quantised(grid: Grid) -> Grid:
    """Leave the input channels in the order in which they were quantised."""
    order = np.argsort(grid.groups, kind="stable")
    return replace(grid, codes=grid.codes[:, order], groups=grid.groups[order])


def neighbours_exchanged(grid: Grid) -> Grid:
    """Exchange each two codes along the input channels."""
    return replace(
        grid, codes=grid.codes.reshape(len(grid.codes), -1, 2)[..., ::-1].reshape(grid.codes.shape)
    )


def rows_in_places(places: tuple[int, ...]) -> GridChange:
    """Take each eight output channels from other places of their words, zero points likewise."""

    def change(grid: Grid) -> Grid:
        rows = (np.arange(len(grid.codes)).reshape(-1, len(places))[:, places]).reshape(-1)
        return replace(grid, codes=grid.codes[rows], zeros=None if grid.zeros is None else grid.zeros[rows])

    return change


def scales_transposed(grid: Grid) -> Grid:
    """Read scales and zero points [out, groups] as [groups, out]."""
    zeros = None if grid.zeros is None else grid.zeros.T.reshape(grid.zeros.shape)
    return replace(grid, scales=grid.scales.T.reshape(grid.scales.shape), zeros=zeros)


def blocks_transposed(height: int) -> GridChange:
    """Read the scales of blocks of ``height`` rows the other way round."""

    def change(grid: Grid) -> Grid:
        blocks = grid.scales[::height]
        turned = blocks.T.reshape(blocks.shape)
        return replace(grid, scales=np.repeat(turned, height, axis=0)[: len(grid.scales)])

    return change


def second_scale(power: int) -> GridChange:
    """Multiply by the scale of the whole tensor to a power: -1 leaves it out, -2 divides by it."""

    def change(grid: Grid) -> Grid:
        outer = float(grid.scales.max()) / 448.0  # the largest scale in 8 bits is 448 as it was chosen
        return replace(grid, scales=(grid.scales * np.float32(outer) ** power).astype(np.float32))

    return change


def other_table(levels: tuple[float, ...], others: tuple[float, ...]) -> GridChange:
    """Look codes up in another table."""

    def change(grid: Grid) -> Grid:
        table = np.asarray(levels, dtype=np.float32)
        codes = np.abs(grid.codes[..., None] - table).argmin(axis=-1)
        return replace(grid, codes=np.asarray(others, dtype=np.float32)[codes])

    return change
