"""Where an error sits: one token, head, channel or value alone, and the positions of each axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words, scalar
from apr_falsify.compare.variations.common import Indices

OF_EVERY_HEAD = " of every head"
"""Marks the channels that heads side by side have alike."""


def one_place_by_a_factor(case: Case) -> Iterator[Guess]:
    """Yield the replay with one token, head, channel or value alone times a factor."""
    yield from _one_place(case, by_a_factor=True)


def one_place(case: Case) -> Iterator[Guess]:
    """Yield the replay with one token, head, channel or value alone as the subject has it."""
    yield from _one_place(case, by_a_factor=False)


def _one_place(case: Case, *, by_a_factor: bool) -> Iterator[Guess]:
    exceeds = case.exceeds
    axes = axes_of(case.name, case.geometry)
    single = {
        name: indices[0]
        for name, (indices, count) in places(exceeds, axes).items()
        if len(indices) == 1 and count > 1
    }
    if not single:
        return
    if "channel" in single:  # which says which head's, too
        single = {name: single[name] for name in single if name in ("channel", "token")}
    region = _region(exceeds, axes, single)
    values = np.where(region, case.subject, case.shaped(case.expected))
    words = ", ".join(_place_words(name, index, axes) for name, index in single.items())
    name = "one-value" if exceeds.sum() == 1 else f"one-{_most_telling(single)}"
    factor = _factor(case, region)
    if (factor is not None) == by_a_factor:
        yield Guess(says=f"only {words}: {_by_how_much(factor)}", values=values, name=name)


def _most_telling(single: Mapping[str, int]) -> str:
    order = ("vocabulary entry", "channel", "channel of every head", "key", "head", "token", "part")
    return next(name for name in order if name in single).replace(" ", "-")


def _place_words(name: str, index: int, axes: Axes) -> str:
    if name == "head" and axes.heads:
        return axes.heads[index]
    return f"channel {index} of every head" if name == "channel of every head" else f"{name} {index}"


def places(exceeds: npt.NDArray[np.bool_], axes: Axes) -> dict[str, tuple[Indices, int]]:
    """Return by kind of place: the indices that have any of ``exceeds``, and how many there are."""
    at = np.nonzero(exceeds)
    found = {
        name: (np.unique(at[axis]), exceeds.shape[axis])
        for axis, name in enumerate(axes.names[-exceeds.ndim :])
    }
    if axes.head_dim is not None:
        found["head"] = (np.unique(at[-1] // axes.head_dim), len(axes.heads))
        found["channel of every head"] = (np.unique(at[-1] % axes.head_dim), axes.head_dim)
    return found


def _region(exceeds: npt.NDArray[np.bool_], axes: Axes, single: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    region = np.ones(exceeds.shape, dtype=np.bool_)
    last = np.arange(exceeds.shape[-1])
    for name, index in single.items():
        if axes.head_dim is not None and name == "head":
            region &= last // axes.head_dim == index
        elif name == "channel of every head":
            region &= last % (axes.head_dim or 1) == index
        else:
            axis = axes.names[-exceeds.ndim :].index(name) - exceeds.ndim
            region &= (
                np.moveaxis(np.arange(exceeds.shape[axis])[(...,) + (None,) * (-axis - 1)], 0, 0) == index
            )
    return region


def _by_how_much(factor: float | None) -> str:
    if factor is None:
        return "by no constant factor; everything else"
    return "all zeros there" if factor == 0 else f"x {factor_words(factor)} there"


def _factor(case: Case, region: npt.NDArray[np.bool_]) -> float | None:
    """Return the factor that all of a region is off by, ``None`` where there is none."""
    e, sigma = case.shaped(case.expected)[region], case.shaped_sigma[region]
    s = case.subject[region]
    value = scalar(e, s, sigma)
    scaled = np.where(region, case.subject, 0.0)
    scaled[region] = value * e
    guess = Guess(says="", values=np.where(region, scaled, case.subject), sigma=case.shaped_sigma)
    return value if math.isfinite(value) and case.fits(guess) else None


def error_sits(subject: F64, expected: F64, sigma: F64, limit: float, axes: Axes) -> str:
    """Say which tokens, heads and channels exceed the floor: ``channel 17 of 256, every token``.

    Args:
        subject: the captured stage.
        expected: its replay, same shape.
        sigma: the rounding of the replay, same shape.
        limit: how many sigma are allowed.
        axes: what the axes mean.

    """
    with np.errstate(all="ignore"):
        same = (subject == expected) | (np.isnan(subject) & np.isnan(expected))
        beyond = ~(np.abs(subject - expected) <= limit * sigma)
        exceeds = ~same & (beyond | (np.isfinite(subject) != np.isfinite(expected)))
    if not exceeds.any():
        return "no single place stands out: it is small, and everywhere"
    found = places(exceeds, axes)
    if axes.head_dim is not None:
        found.pop("channel")  # reported within the heads
    share = f" ({np.count_nonzero(exceeds)} of {exceeds.size} values)"
    limited = {name: where for name, where in found.items() if len(where[0]) < where[1]}
    whole = [name for name in found if name not in limited and found[name][1] > 1]
    said = [_limited(name, indices, count, axes) for name, (indices, count) in limited.items()]
    said += [f"every {name.removesuffix(OF_EVERY_HEAD)}" for name in whole]
    return ", ".join(said) + share


_LISTED = 4


def _limited(name: str, indices: npt.NDArray[np.intp], count: int, axes: Axes) -> str:
    """Name the positions of one axis: one, a range, a few, or how many of how many."""
    if name == "head" and axes.heads:
        named = [axes.heads[index] for index in indices[: _LISTED + 1]]
        return ", ".join(named) if len(indices) <= _LISTED else f"{len(indices)} of {count} heads"
    noun = name.removesuffix(OF_EVERY_HEAD)
    nouns = f"{noun.removesuffix('y')}ies" if noun.endswith("y") and noun != "key" else f"{noun}s"
    within = " of the head" if noun != name else ""
    if len(indices) == 1:
        return f"{noun} {indices[0]} of {count}{within}" if noun == "channel" else f"{noun} {indices[0]} only"
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):
        return f"{nouns} {first} to {last}{within}"
    if len(indices) <= _LISTED:
        return f"{nouns} {', '.join(map(str, indices))}{within}"
    return f"{len(indices)} of {count} {nouns}{within}"
