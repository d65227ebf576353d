"""What the readers of a place say of an array: whether what they make of it is what was recorded of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from apr_falsify.matching.bag import Bag, Hit, distance
from apr_falsify.matching.forms import WORDED, StagePlace
from apr_falsify.matching.forward import ForwardRun, Values
from apr_falsify.model.stages import Key

F64 = npt.NDArray[np.float64]

DEEPEST = 5
"""Through how many stages that were not recorded an array is followed to one that was."""

_GAIN = 0.25
"""A reader fits an array only if it is so much nearer than without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """An array that is a place.

    Attributes:
        hit: the array, its form, and how far it is from what its inputs make it.
        why: what shows it: ``inputs``, ``readers`` or ``place``.
        readers: the recorded places that it makes, where those show it.
        equals: arrays of the same values, this one among them.

    """

    hit: Hit
    why: str
    readers: tuple[StagePlace, ...] = ()
    equals: tuple[Hit, ...] = ()

    @property
    def at(self) -> int:
        """The array's number in the bag."""
        return self.hit.entry.at


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderFit:
    """What fits if a place is an array, and does not otherwise.

    Attributes:
        readers: the recorded places.
        distance: the least distance of one of them.
        anchored: whether one of them is computed from this layer's weights, or from something else that is
            known here. RoPE, softmax and activations alone fit the arrays of any layer.

    """

    readers: tuple[StagePlace, ...]
    distance: float
    anchored: bool


@dataclass(slots=True)
class State:
    """The values of a run as far as they are computed, and the array of each place."""

    values: Values = field(default_factory=dict)
    uses: dict[StagePlace, Use] = field(default_factory=dict)


class Readers:
    """Asks the readers of places.

    Args:
        bag: the arrays.
        run: computes the places.
        tight: relative L2 up to which an array is what its inputs make it.
        state: what is known.

    """

    def __init__(self, bag: Bag, run: ForwardRun, tight: float, state: State) -> None:
        self.bag, self.run, self.tight, self.state = bag, run, tight, state

    def is_right(self, place: StagePlace, known: Collection[Key], depth: int = 0) -> bool:
        """Whether a place that is computed from this one was found by what its inputs make it."""
        if depth > DEEPEST:
            return False
        for reader in self.of(place):
            if reader.key not in known:
                continue
            use = self.state.uses.get(reader)
            if use is not None and use.why == "inputs":
                return True
            if use is None and self.is_right(reader, known, depth + 1):
                return True
        return False

    def of(self, place: StagePlace) -> list[StagePlace]:
        """Return the places that are computed from one; the bias of q is added to q alone."""
        return [
            reader
            for key in self.run.readers(place.key, place.part)
            for reader in self.run.places_of(key)
            if not (place.part and reader.part) or place.part == reader.part
        ]

    def fit(
        self, tried: Mapping[StagePlace, Hit], known: Collection[Key], deepest: int = DEEPEST
    ) -> ReaderFit | None:
        """Return what fits if each place is the array that is tried, ``None`` where nothing does."""
        values = dict(self.state.values)
        for place, hit in tried.items():
            self.run.put(place, hit.values, values)
        taken = {hit.entry.at for hit in tried.values()}
        found: list[tuple[StagePlace, float]] = []
        derived = {place.key for place in tried}
        frontier, anchored = list(derived), False
        for _ in range(deepest if deepest > 1 else 2):
            following = [
                reader
                for key in frontier
                for reader in self.run.readers(key)
                if reader in known and reader not in derived
            ]
            frontier = []
            for reader in self._in_order(dict.fromkeys(following)):
                values[reader] = self.run.expected(reader, values)
                fits = list(self._found_only_so(reader, values, taken))
                found += fits
                anchored |= bool(fits) and self.run.is_of_layer(reader, derived)
                derived.add(reader)
                if fits or (deepest > 1 and not self._is_used(reader)):
                    frontier.append(reader)
            if anchored or not frontier:
                break
        if not found:
            return None
        return ReaderFit(
            readers=tuple(place for place, _ in found),
            distance=min(distance for _, distance in found),
            anchored=anchored,
        )

    def _is_used(self, key: Key) -> bool:
        return all(place in self.state.uses for place in self.run.places_of(key))

    def _in_order(self, keys: Iterable[Key]) -> list[Key]:
        order = {key: index for index, key in enumerate(self.state.values)}
        return sorted(keys, key=order.__getitem__)

    def _found_only_so(self, key: Key, values: Values, taken: set[int]) -> Iterator[tuple[StagePlace, float]]:
        """Yield the places of ``key`` whose array fits ``values``, and fits worse without them."""
        for place in self.run.places_of(key):
            use = self.state.uses.get(place)
            wanted = self.run.part(place, values[key])
            before = self.run.part(place, self.state.values[key] if use is None else self._unread(key))
            if not np.any(wanted):
                continue
            if use is not None:
                found = [self.bag.measured(use.hit.entry, place, wanted)]
            elif distance(wanted, before) <= self.tight / 4:
                continue
            else:
                found = [*self.bag.nearest(place, wanted, self.tight)[:3]]
            for hit in found:
                if hit is None or hit.distance > self.tight or hit.entry.at in taken:
                    continue
                if use is None and hit.entry.form.oddity >= WORDED:
                    continue
                without = self.bag.measured(hit.entry, place, before)
                if without is None or hit.distance <= _GAIN * without.distance:
                    yield place, hit.distance
                    break

    def _unread(self, key: Key) -> F64:
        """Return what a stage is made by what is known now."""
        return self.run.expected(key, self.state.values)
