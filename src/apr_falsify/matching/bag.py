"""The arrays of a recording, each with every form in which it may be a place, and a sample of its values.

A sample of some hundred values of each array, in the canonical order of a place, tells which few of thousands
are worth a comparison of all values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.matching.forms import (
    WORDED,
    Form,
    StagePlace,
    forms_of,
    is_score,
    is_square,
    is_whole_numbers,
    view,
    words_for,
)
from apr_falsify.model.passes import Passes
from apr_falsify.model.reach import seen_keys
from apr_falsify.model.shape import Geometry
from apr_falsify.subjects.array_axes import axis_sizes
from apr_falsify.subjects.foreign import BF16_BITS, Dump, load_all
from apr_falsify.subjects.mapped_arrays import FLOATS, WHOLE

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_SAMPLE = 192
_SAMPLED_OFF, _SAMPLED_LEAST = 20.0, 2e-3
"""How many times farther than all its values an array's sample may be, and what is always looked at."""

_LOOKED_AT = 24
"""How many arrays are compared with all their values, those of the nearest samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BagArray:
    """One array of the recording.

    Attributes:
        name: its name there.
        kind: its number format.
        values: its values, f32 where they are floats.

    """

    name: str
    kind: str
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BagEntry:
    """One array in one form.

    Attributes:
        at: the array's number in the bag.
        form: the form.

    """

    at: int
    form: Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One array in one form, and how far it is from what was looked for.

    Attributes:
        entry: the array and the form.
        distance: relative L2.
        values: it in canonical axes.
        masked: whether only what a query may look at was compared.

    """

    entry: BagEntry
    distance: float
    values: F64
    masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    entries: Sequence[BagEntry]
    samples: F64
    last: Mask


class Bag:
    """The arrays of a recording that may be stages of a model."""

    def __init__(
        self, path: Path, dump: Dump, geometry: Geometry, tokens: int, left_out: frozenset[str]
    ) -> None:
        self.geometry = geometry
        self.sizes = axis_sizes(geometry, tokens)
        self.passes = Passes.whole(tokens)
        self._forms: dict[tuple[Any, ...], list[Form]] = {}
        wanted = {
            name: array
            for name, array in dump.items()
            if name not in left_out
            and array.kind in (*FLOATS, *BF16_BITS, *WHOLE)
            and self._may_fit(array.shape)
        }
        self.arrays = [
            BagArray(
                name=name,
                kind=wanted[name].kind,
                values=_decoded(values, wanted[name].kind, wanted[name].shape),
            )
            for name, values in load_all(path, wanted)
        ]
        self._tables: dict[tuple[Any, ...], _Table] = {}
        self._sampled_at: dict[tuple[Any, ...], npt.NDArray[np.intp]] = {}

    def _may_fit(self, shape: tuple[int, ...]) -> bool:
        """Whether an array may be any place: it has as many values as tokens times something, or a row."""
        size = int(np.prod(shape, dtype=np.int64))
        return size > 1 and (size % self.sizes["tokens"] == 0 or size in self.sizes.values())

    def view(self, entry: BagEntry, place: StagePlace) -> F64 | None:
        """Return an array as ``place``."""
        return view(self.arrays[entry.at].values, entry.form, place, self.sizes, self.geometry)

    def nearest(self, place: StagePlace, wanted: F64, within: float) -> list[Hit]:
        """Return the arrays that may lie ``within`` a relative distance of ``wanted``, the nearest first.

        ``wanted`` is the place in canonical axes.
        """
        off = self._sampled_distances(place, wanted)
        order = np.argsort(off, kind="stable")[:_LOOKED_AT]
        entries = self._table(place).entries
        near = [entries[index] for index in order if off[index] <= max(_SAMPLED_OFF * within, _SAMPLED_LEAST)]
        hits = [hit for entry in near if (hit := self.measured(entry, place, wanted)) is not None]
        return sorted(hits, key=lambda hit: (hit.distance, hit.entry.form.oddity))

    def likeliest(self, place: StagePlace, wanted: F64, most: int) -> list[Hit]:
        """Return the ``most`` arrays of all tokens whose samples are nearest to ``wanted``, however far."""
        off = self._sampled_distances(place, wanted)
        entries = self._table(place).entries
        order = [index for index in np.argsort(off, kind="stable") if not entries[index].form.last]
        hits = (self.measured(entries[index], place, wanted) for index in order[:most])
        found = [hit for hit in hits if hit is not None]
        return sorted(found, key=lambda hit: (min(hit.distance, 2.0), hit.entry.form.oddity))

    def _sampled_distances(self, place: StagePlace, wanted: F64) -> F64:
        """Return how far each array's sample is from that of ``wanted``, relative to it."""
        table = self._table(place)
        if not table.entries:
            return np.zeros(0)
        aims = _sampled(self.only_data(wanted, place), self._points(place))
        if table.last.any():
            aims = np.where(table.last[:, None], self._of_last_row(wanted, place), aims)
        off = np.sqrt(np.mean(np.square(table.samples - aims), axis=1))
        off /= np.sqrt(np.mean(np.square(aims), axis=-1)) + 1e-30
        return np.asarray(np.nan_to_num(off, nan=np.inf))

    def _of_last_row(self, wanted: F64, place: StagePlace) -> F64:
        if place.axes[0] != "tokens":
            return _sampled(wanted, self._points(place))
        return _sampled(np.broadcast_to(wanted[-1:], wanted.shape), self._points(place))

    def measured(self, entry: BagEntry, place: StagePlace, wanted: F64) -> Hit | None:
        """Return how far an array is from ``wanted``, ``None`` where it cannot be read so."""
        found = self.view(entry, place)
        if found is None:
            return None
        if is_whole_numbers(place):
            return Hit(entry=entry, distance=_other_sets(found, wanted[-len(found) :]), values=found)
        if place.axes[0] == "tokens" and len(found) < len(wanted):
            wanted = wanted[-len(found) :]
        whole = distance(found, wanted)
        if not is_score(place):
            return Hit(entry=entry, distance=whole, values=found)
        seen = distance(self.only_data(found, place), self.only_data(wanted, place))
        masked = seen < whole / 4
        return Hit(entry=entry, distance=seen if masked else whole, values=found, masked=masked)

    def only_data(self, values: F64, place: StagePlace) -> F64:
        """Return scores with zeros where no query may look."""
        if not is_square(place):
            return values
        layer = place.key.layer
        seen = seen_keys(self.geometry, layer, self.passes) if is_score(place) else self.passes.visible(None)
        return np.where(seen, values, 0.0)

    def _table(self, place: StagePlace) -> _Table:
        geometry, layer = self.geometry, place.key.layer
        differs: tuple[float | None, ...] = ()
        if layer is not None:
            differs = (geometry.attn_scale_at(layer), geometry.windows[layer], geometry.chunk_at(layer))
        alike = place.key.stage if self._is_special(place) else ""
        lies = place.lies_as if len(words_for(place, geometry)) > 1 else ""
        key = (place.axes, place.part, lies, alike, differs if is_square(place) or lies else ())
        if key not in self._tables:
            self._tables[key] = self._made(place, alike)
        return self._tables[key]

    def _is_special(self, place: StagePlace) -> bool:
        return place.key.stage in ("ffn_gate", "ffn_up", "moe_router_indices") or is_square(place)

    def _made(self, place: StagePlace, alike: str) -> _Table:
        entries, samples = [], []
        points = self._points(place)
        for at, array in enumerate(self.arrays):
            if is_whole_numbers(place) != (array.kind in WHOLE) and not (
                is_whole_numbers(place) and array.kind in FLOATS
            ):
                continue
            for form in self._forms_of(array.values.shape, place, alike):
                values = view(array.values, form, place, self.sizes, self.geometry)
                if values is None:
                    continue
                if form.last and place.axes[0] == "tokens":
                    values = np.broadcast_to(values, (self.sizes["tokens"], values.shape[1]))
                entries.append(BagEntry(at=at, form=form))
                samples.append(_sampled(self.only_data(values, place), points))
        last = np.array([entry.form.last for entry in entries], dtype=np.bool_)
        return _Table(entries=entries, samples=np.array(samples), last=last)

    def _forms_of(self, shape: tuple[int, ...], place: StagePlace, alike: str) -> list[Form]:
        key = (shape, place.axes, place.part, alike, place.lies_as)
        if key not in self._forms:
            plain = forms_of(shape, place, self.sizes)
            words = words_for(place, self.geometry)
            self._forms[key] = [
                form if not more else _with_words(form, more)
                for more in words
                for form in plain
                if not (more and form.last)
            ]
        return self._forms[key]

    def _points(self, place: StagePlace) -> npt.NDArray[np.intp]:
        """Return which values are sampled, as indices into the place laid flat."""
        key = (place.axes, is_square(place))
        if key not in self._sampled_at:
            self._sampled_at[key] = self._chosen_points(place)
        return self._sampled_at[key]

    def _chosen_points(self, place: StagePlace) -> npt.NDArray[np.intp]:
        count = int(np.prod([self.sizes[axis] for axis in place.axes]))
        chance = np.random.default_rng(count)
        if not is_square(place):
            return np.sort(chance.integers(0, count, _SAMPLE))
        seen = np.flatnonzero(
            np.broadcast_to(self.passes.visible(None), (self.sizes["heads"], *[self.sizes["tokens"]] * 2))
        )
        return np.asarray(np.sort(chance.choice(seen, _SAMPLE)))


def _with_words(form: Form, words: tuple[Any, ...]) -> Form:
    return Form(
        stored=form.stored,
        words=(*form.words, *words),
        last=form.last,
        oddity=form.oddity + WORDED * len(words),
    )


def _decoded(values: npt.NDArray[Any], kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if kind == "bf16" or kind in BF16_BITS:
        wide = values.reshape(-1).view("<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).reshape(shape)
    if kind in WHOLE:
        return values.reshape(shape)
    with np.errstate(all="ignore"):
        return values.astype(np.float32, copy=False).reshape(shape)


def _sampled(values: F64, points: npt.NDArray[np.intp]) -> F64:
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.nan_to_num(flat[points], nan=0.0, posinf=0.0, neginf=0.0)


def _other_sets(found: F64, wanted: F64) -> float:
    """Return the share of rows that are other sets of experts."""
    return float(np.mean(np.any(np.sort(found, axis=-1) != np.sort(wanted, axis=-1), axis=-1)))


def distance(found: F64, wanted: F64) -> float:
    """Return the relative L2 distance; infinite where one is not finite and the other is."""
    with np.errstate(all="ignore"):
        off = (found - wanted).reshape(-1)
        left = float(np.dot(off, off))
        if not math.isfinite(left):
            off[(found == wanted).reshape(-1) | (np.isnan(found) & np.isnan(wanted)).reshape(-1)] = 0.0
            left = float(np.dot(off, off))
            wanted = np.nan_to_num(wanted, posinf=0.0, neginf=0.0)
        flat = wanted.reshape(-1)
        size = float(np.dot(flat, flat))
    if not math.isfinite(left):
        return math.inf
    return math.sqrt(left / size) if size else (0.0 if left == 0 else math.inf)


def sizes_named(sizes: Mapping[str, int]) -> str:
    """Return the sizes of axes in words."""
    return ", ".join(f"{word} {size}" for word, size in sizes.items() if word != "1")
