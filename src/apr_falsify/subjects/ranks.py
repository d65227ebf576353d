"""Arrays of tensor-parallel ranks, laid side by side or added up, as if one device had computed them.

A layer that is cut by its outputs (q, k, v, gate, up) leaves each rank a part of the channels or heads; one
that is cut by its inputs (the projection behind attention, down) leaves each rank a partial sum of them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from apr_falsify.errors import TraceError
from apr_falsify.subjects.foreign import Dump, ForeignArray, Values
from apr_falsify.subjects.mapping import MappingFile
from apr_falsify.subjects.mapping_names import RANK
from apr_falsify.subjects.mapping_passes import SUM

_SUMMED = ("f16", "f32", "f64")
"""The number formats of partial sums; bits of bf16 are not added."""

_FIELD = re.compile(r"\\\{(?:layer|pass)[^}]*\\\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How one name stands for the arrays of all ranks.

    Attributes:
        whole: matches the name with its other fields filled in.
        one: matches the name of a rank's array.
        axis: the axis along which the parts lie, ``None`` for partial sums.

    """

    whole: re.Pattern[str]
    one: re.Pattern[str]
    axis: int | None


def of_all_ranks(dump: Dump, said: MappingFile) -> Dump:
    """Return the arrays of a recording, those of its ranks as one.

    Raises:
        TraceError: names by rank, and nothing says how many there are.

    """
    by_rank = [row.stage for row in said.stages if row.shards is not None]
    if not by_rank:
        return dump
    if said.ranks is None:
        raise TraceError(
            f"stages.{by_rank[0]} is there for each rank, and nothing says how many there are",
            where=said.path,
            expected="ranks: N",
        )
    return RankDump(dump, said)


class RankDump(Mapping[str, ForeignArray]):
    """A recording in which a name with ``{rank}`` is the array of all ranks.

    Args:
        dump: the arrays as they were saved.
        said: the mapping.

    """

    def __init__(self, dump: Dump, said: MappingFile) -> None:
        self._dump, self._ranks, self._where = dump, said.ranks or 1, said.path
        self._cuts = [
            _cut(name, None if row.shards == SUM else _axis(row.shards, axes))
            for row in said.stages
            for name, axes in zip(row.names, row.axes, strict=True)
            if RANK in name
        ]

    def __getitem__(self, name: str) -> ForeignArray:
        if RANK not in name:
            return self._dump[name]
        cut = next(cut for cut in self._cuts if cut.whole.fullmatch(name))
        names = [name.replace(RANK, str(rank)) for rank in range(self._ranks)]
        parts = [self._dump[each] for each in names if each in self._dump]
        if not parts:
            raise KeyError(name)
        if len(parts) < len(names):
            missing = next(each for each in names if each not in self._dump)
            raise TraceError(
                f"there is no array {missing!r}, and there are {len(parts)} of other ranks",
                where=self._where,
                expected=f"one of each of {self._ranks} ranks",
            )
        if cut.axis is not None:
            return self._joined(name, parts, cut.axis)
        if len({part.shape for part in parts}) > 1 or any(part.kind not in _SUMMED for part in parts):
            raise self._unlike(parts)
        return _added(name, parts)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._dump if not any(cut.one.fullmatch(name) for cut in self._cuts))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _joined(self, name: str, parts: list[ForeignArray], axis: int) -> ForeignArray:
        first = parts[0]
        fits = {(part.kind, len(part.shape)) for part in parts} == {(first.kind, len(first.shape))}
        if not fits or not -len(first.shape) <= axis < len(first.shape):
            raise self._unlike(parts)
        sizes = [part.shape[axis] for part in parts]
        shape = tuple(sum(sizes) if at == axis % len(first.shape) else n for at, n in enumerate(first.shape))
        others = {tuple(np.delete(part.shape, axis).tolist()) for part in parts}
        if len(others) > 1:
            raise self._unlike(parts)

        def load() -> Values:
            return np.concatenate([part.load().reshape(part.shape) for part in parts], axis=axis)

        return ForeignArray(name=name, kind=first.kind, shape=shape, load=load)

    def _unlike(self, parts: list[ForeignArray]) -> TraceError:
        told = ", ".join(f"{part.name} {part.kind} {list(part.shape)}" for part in parts[:4])
        return TraceError(
            f"the arrays of the ranks do not fit together: {told}",
            where=self._where,
            expected="one number format, and one shape but for the axis that `shards` names",
        )


def _cut(name: str, axis: int | None) -> _Cut:
    pattern = _FIELD.sub(r"\\d+", re.escape(name))
    rank = re.escape(RANK)
    return _Cut(whole=re.compile(pattern), one=re.compile(pattern.replace(rank, r"\d+")), axis=axis)


def _axis(word: str | None, axes: tuple[str, ...]) -> int:
    """Return the axis that ``shards`` names, from the end: an array may have a batch before its axes."""
    return (axes.index(word) if word in axes else len(axes) - 1) - len(axes)


def _added(name: str, parts: list[ForeignArray]) -> ForeignArray:
    """Return partial sums added up, in f64 and rounded to f32."""

    def load() -> Values:
        total = parts[0].load().astype(np.float64)
        for part in parts[1:]:
            total = total + part.load()
        return np.asarray(total.astype(np.float32))

    return ForeignArray(name=name, kind="f32", shape=parts[0].shape, load=load)
