"""Which array is which place: by value where the run is right, by what reads it where it is not.

Layer by layer:

1. A place is computed from the run's own arrays, as far as they are known. The nearest array that is no
   farther than the run's rounding is that place.
2. Where the run is wrong, no array is what the inputs make it. Then an array is looked for of which the
   *readers* of the place make what was recorded: it is what the run went on with.
3. What no recorded stage is computed from is recognised by its place alone: the one array that is left, and
   like what it should be. Where that decides between several, nothing is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.matching.bag import Bag, Hit, distance
from apr_falsify.matching.forms import WORDED, StagePlace
from apr_falsify.matching.forward import ForwardRun
from apr_falsify.matching.names import NamePreference
from apr_falsify.matching.readers import DEEPEST, ReaderFit, Readers, State, Use
from apr_falsify.model.stages import Key

F64 = npt.NDArray[np.float64]

_SAME = 1e-6
"""Arrays of one value, up to the rounding of one operation: it does not matter which is taken."""

_MOST_TRIED = 40
"""Arrays that are tried as one wrong place, the nearest first."""

_FOLLOWED = 8
"""Of these, so many are followed through stages that were not recorded."""

_PAIRED = 8
"""The same of two wrong places that one stage reads."""

_MASKED = 3
"""How odd scores are to which the mask was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A place of which it cannot be decided which array it is.

    Attributes:
        place: the place.
        candidates: the names of the arrays that it may be.

    """

    place: StagePlace
    candidates: tuple[str, ...]


class WiringSearch:
    """Finds the places of one recording among its arrays.

    Args:
        bag: the arrays.
        run: computes the places.
        tight: relative L2 up to which an array is what its inputs make it.
        prefers: how well an array's name goes with a place, for arrays that are equal: more is better.
        fine_up_to: the last layer of which arrays are the oracle's: no fault lies before it.

    """

    def __init__(
        self, bag: Bag, run: ForwardRun, tight: float, prefers: NamePreference, fine_up_to: int
    ) -> None:
        self.bag, self.run, self.tight, self.prefers = bag, run, tight, prefers
        self.fine_up_to = fine_up_to
        self.state = State()
        self.readers = Readers(bag, run, tight, self.state)
        self.open: dict[StagePlace, Open] = {}

    # --- the sweep ------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Find every place, layer by layer."""
        layers: list[int | None] = [*range(self.run.geometry.layers), None]
        done: list[Key] = []
        for layer in layers:
            keys = self.run.keys_at(layer)
            self._forward(keys)
            window = [*done, *keys]
            while (fixed := self._fix(window)) is not None:
                again = window[window.index(fixed) :]
                self._forward(again)
            done = keys
        self._by_place()

    def _forward(self, keys: Sequence[Key]) -> None:
        """Compute ``keys`` and find what is recorded of them; what its readers showed stays."""
        for key in keys:
            for place in self.run.places_of(key):
                if place in self.state.uses and self.state.uses[place].why == "inputs":
                    del self.state.uses[place]
        for key in keys:
            self.state.values[key] = self.run.expected(key, self.state.values)
            whole = self.state.values[key]
            for place in self.run.places_of(key):
                use = self.state.uses.get(place) or self._by_inputs(place, self.run.part(place, whole))
                if use is not None:
                    self.state.uses[place] = use
                    self.run.put(place, use.hit.values, self.state.values)

    def _by_inputs(self, place: StagePlace, wanted: F64) -> Use | None:
        if not np.any(wanted):
            return None
        hits = [hit for hit in self.bag.nearest(place, wanted, self.tight) if hit.distance <= self.tight]
        free = [hit for hit in hits if not self._taken(hit, place)]
        if not free:
            return None
        return self._chosen(place, free, "inputs")

    def _chosen(
        self, place: StagePlace, hits: Sequence[Hit], why: str, readers: tuple[StagePlace, ...] = ()
    ) -> Use:
        """Return the nearest array; of equal ones the plainest, with the likeliest name."""
        near = hits[0].distance + max(_SAME, hits[0].distance / 2)
        equals = [
            hit
            for hit in hits
            if hit.distance <= near and (hit is hits[0] or self._same(hit, hits[0], place))
        ]
        equals.sort(
            key=lambda hit: (
                hit.entry.form.oddity + _MASKED * hit.masked,
                -self.prefers(self._name(hit), place),
                hit.entry.at,
            )
        )
        self.prefers.note(self._name(equals[0]), place)
        return Use(hit=equals[0], why=why, readers=readers, equals=tuple(equals))

    def _same(self, one: Hit, other: Hit, place: StagePlace) -> bool:
        """Whether two arrays hold the same; scores where a query may look."""
        if not (one.masked or other.masked):
            return equal(one, other)
        values = [self.bag.only_data(hit.values, place) for hit in (one, other)]
        return distance(*values) <= _SAME

    def _name(self, hit: Hit) -> str:
        return self.bag.arrays[hit.entry.at].name

    def _taken(self, hit: Hit, place: StagePlace, *, lent: bool = False) -> bool:
        """Whether another place holds the array, or the same slice of it."""
        sources = self.run.inputs_of(place.key) if self.state.values else []
        for other, use in self.state.uses.items():
            if use.at == hit.entry.at and other != place:
                if lent and use.why == "inputs" and other.key in sources and other.axes == place.axes:
                    continue  # a stage that does nothing: its array was taken for its input
                if not (hit.entry.form.stored.take and use.hit.entry.form.stored.take):
                    return True
                if _overlap(hit, use.hit):
                    return True
        return False

    # --- what is wrong --------------------------------------------------------------------------------

    def _fix(self, window: Sequence[Key]) -> Key | None:
        """Find one place in ``window`` by its readers; return the first stage that must be computed anew."""
        known = set(self.state.values)
        for key in window:
            readers = [reader for reader in self.run.readers(key) if reader in known]
            if not readers:
                continue
            if (exchanged := self._exchange(key)) is not None:
                return exchanged
            for place in self.run.places_of(key):
                if place not in self.state.uses and self._by_readers(place, known):
                    return key
            if self._pair(key, known):
                return key
        return None

    def _candidates(self, place: StagePlace, most: int) -> list[Hit]:
        wanted = self.run.part(place, self.state.values[place.key])
        hits = self.bag.likeliest(place, wanted, 2 * most)
        return [hit for hit in hits if np.any(hit.values) and not self._taken(hit, place, lent=True)][:most]

    def _by_readers(self, place: StagePlace, known: set[Key]) -> bool:
        """Look for the array of which the readers of ``place`` make what was recorded."""
        found: list[tuple[Hit, ReaderFit]] = []
        tried = self._candidates(place, _MOST_TRIED)
        if self._is_before(place) or self.readers.is_right(place, known):
            tried = [hit for hit in tried if hit.distance < _LIKE]  # a small fault beside what is right
        for rank, hit in enumerate(tried):
            if any(
                equal(hit, other) and hit.entry.form.oddity >= other.entry.form.oddity + WORDED
                for other, _ in found
            ):
                continue
            fit = self.readers.fit({place: hit}, known, DEEPEST if rank < _FOLLOWED else 1)
            if fit is not None and not fit.anchored and hit.distance > _LIKE:
                continue
            if fit is not None and not self._fits_better_later(place, hit, fit, known):
                found.append((hit, fit))
        return self._take(place, found)

    def _fits_better_later(self, place: StagePlace, hit: Hit, fit: ReaderFit, known: set[Key]) -> bool:
        """Whether the array is rather what a stage makes of the place: scores past their soft-cap, say."""
        for reader in self.readers.of(place):
            if reader.key not in known or reader in self.state.uses or reader.axes != place.axes:
                continue
            other = self.bag.measured(hit.entry, reader, self.run.part(reader, self.state.values[reader.key]))
            later = None if other is None else self.readers.fit({reader: other}, known)
            if later is not None and later.distance < fit.distance / 3:
                return True
        return False

    def _is_before(self, place: StagePlace) -> bool:
        """Whether later arrays are the oracle's, so that no fault of any size is here."""
        return place.key.layer is not None and place.key.layer < self.fine_up_to

    def _take(self, place: StagePlace, found: Sequence[tuple[Hit, ReaderFit]]) -> bool:
        if not found:
            return False
        most = max(len(fit.readers) for _, fit in found)
        best = [(hit, fit) for hit, fit in found if len(fit.readers) == most]
        best.sort(key=lambda pair: (pair[0].distance, pair[0].entry.form.oddity))
        hit, fit = best[0]
        rivals = [
            other for other, _ in best[1:] if not equal(other, hit) and other.distance < 2 * hit.distance
        ]
        plain = [other for other in rivals if other.entry.form.oddity <= hit.entry.form.oddity]
        if plain:
            names = dict.fromkeys((self._name(hit), *(self._name(other) for other in plain)))
            if len(names) > 1:
                self.open[place] = Open(place=place, candidates=tuple(names))
                return False
        self.open.pop(place, None)
        use = self._chosen(place, [each for each, _ in best], "readers", fit.readers)
        self.state.uses[place] = use
        self._take_back(use, place)
        return True

    def _take_back(self, use: Use, place: StagePlace) -> None:
        """Let the place that held an array look for another one of its values."""
        for other, held in list(self.state.uses.items()):
            if (
                other != place
                and held.at == use.at
                and not (held.hit.entry.form.stored.take and use.hit.entry.form.stored.take)
            ):
                del self.state.uses[other]
                self._forward([other.key])

    def _pair(self, key: Key, known: set[Key]) -> bool:
        """Look for the arrays of two wrong places that one stage reads."""
        return any(self._pair_of(place, known) for place in self.run.places_of(key))

    def _pair_of(self, first: StagePlace, known: set[Key]) -> bool:
        key = first.key
        if first in self.state.uses or self._is_before(first) or self.readers.is_right(first, known):
            return False
        for reader in self.run.readers(key, first.part):
            others = [other for other in self.run.inputs_of(reader) if other != key and other in known]
            for other in others:
                second = self.run.places_of(other)[-1]  # of q, k and v the mix reads v
                if second in self.state.uses or self.readers.is_right(second, known):
                    continue
                one, two = (self._candidates(place, _PAIRED) for place in (first, second))
                fitting = []
                for a, b in itertools.product(one, two):
                    fit = None if a.entry.at == b.entry.at else self.readers.fit({first: a, second: b}, known)
                    if fit is not None and (fit.anchored or max(a.distance, b.distance) < _LIKE):
                        fitting.append((a, b, fit))
                if fitting:
                    return self._take_pair(first, second, fitting)
        return False

    def _take_pair(
        self, first: StagePlace, second: StagePlace, fitting: Sequence[tuple[Hit, Hit, ReaderFit]]
    ) -> bool:
        """Take the pair of wrong inputs that fits; where another fits too, which one it is stays open."""
        a, b, fit = fitting[0]
        ones, twos = ([pair[0] for pair in fitting], [pair[1] for pair in fitting])
        for place, hits in ((first, ones), (second, twos)):
            if not all(equal(hit, hits[0]) for hit in hits):
                names = tuple(dict.fromkeys(map(self._name, hits)))
                self.open[place] = Open(place=place, candidates=names)
                return False
        for place, hit in ((first, a), (second, b)):
            self.open.pop(place, None)
            self.state.uses[place] = self._chosen(place, [hit], "readers", fit.readers)
        return True

    _TWINS = (
        ("ffn_gate", "", "ffn_up", ""),
        ("qkv_bias", "k", "qkv_bias", "v"),
        ("qkv_matmul", "k", "qkv_matmul", "v"),
    )

    def _exchange(self, key: Key) -> Key | None:
        """Exchange two places where their readers fit only so: the run takes one for the other."""
        known = set(self.state.values)
        for name, part, other, twin in self._TWINS:
            if key.stage != name:
                continue
            one, two = StagePlace(Key(key.layer, name), part), StagePlace(Key(key.layer, other), twin)
            uses = [self.state.uses.get(place) for place in (one, two)]
            if any(use is None or use.why != "inputs" for use in uses):
                continue
            if self.readers.is_right(one, known) and self.readers.is_right(two, known):
                continue
            a, b = uses[0], uses[1]
            assert a is not None
            assert b is not None
            fit = self.readers.fit({one: b.hit, two: a.hit}, known)
            if fit is not None:
                self.state.uses[one] = Use(hit=b.hit, why="readers", readers=fit.readers, equals=b.equals)
                self.state.uses[two] = Use(hit=a.hit, why="readers", readers=fit.readers, equals=a.equals)
                return key
        return None

    # --- what is recognised by its place --------------------------------------------------------------

    def _by_place(self) -> None:
        """Take the array that is left for a place whose inputs are known and which nothing reads."""
        known = set(self.state.values)
        for key in list(self.state.values):
            for place in self.run.places_of(key):
                if place in self.state.uses or self.readers.is_right(place, known) or not self._is_fed(key):
                    continue
                left = [hit for hit in self._candidates(place, _MOST_TRIED) if not self._is_copy(hit, place)]
                like = [hit for hit in left if hit.distance < _ALONE]
                alone = left if place.axes == ("vocab",) and not like else like
                distinct = [hit for hit in alone if hit is alone[0] or not equal(hit, alone[0])]
                if len(distinct) == 1 and distinct[0].entry.form.oddity < WORDED:
                    self.open.pop(place, None)
                    self.state.uses[place] = self._chosen(place, alone, "place")
                elif distinct:
                    names = tuple(dict.fromkeys(self._name(hit) for hit in distinct))
                    self.open[place] = Open(place=place, candidates=names)

    def _is_copy(self, hit: Hit, place: StagePlace) -> bool:
        """Whether an array has the values of another place: a copy of it proves nothing of this one."""
        others = [other for other in self.state.uses if other.axes == place.axes]
        return any(equal(hit, self.state.uses[other].hit) for other in others)

    def _is_fed(self, key: Key) -> bool:
        """Whether something that a stage is computed from was recorded."""
        return any(
            place in self.state.uses
            for source in self.run.inputs_of(key)
            for place in self.run.places_of(source)
        )


_ALONE = 0.15
"""How far the one array that is left may be from a place of which nothing recorded is computed."""

_LIKE = 0.6
"""How far an array may be from what a place should be and still be like it."""


def _overlap(one: Hit, other: Hit) -> bool:
    first, second = (dict(hit.entry.form.stored.take).popitem()[1] for hit in (one, other))
    return bool(set(range(*first)) & set(range(*second)))


def equal(one: Hit, other: Hit) -> bool:
    """Whether two arrays have the same values."""
    return one.values.shape == other.values.shape and distance(one.values, other.values) <= _SAME
