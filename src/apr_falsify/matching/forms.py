"""The closed list of ways in which an array may hold a stage: axes in any order, slices, copies, words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.layout import canonical
from apr_falsify.errors import TraceError
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SCORES, SQUARES, STAGES, Key, Layout
from apr_falsify.subjects.array_axes import rearranged
from apr_falsify.subjects.mapped_parts import Axis, Slice, Stored, unfolded, words_of
from apr_falsify.subjects.mapping import canonical_axes
from apr_falsify.traces.trace import StageArray

F64 = npt.NDArray[np.float64]
Sizes = Mapping[str, int]


WORDED = 8
"""From this oddity on, a form says that values were changed, not only moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way in which an array may hold a place.

    Attributes:
        stored: its axes, and what of them is taken.
        words: what the axes cannot say.
        last: whether it is the last token's row alone.
        oddity: how far it is from the usual way; 0 is the usual one.

    """

    stored: Stored
    words: tuple[Layout, ...] = ()
    last: bool = False
    oddity: int = 0


@dataclass(frozen=True, slots=True, order=True)
class StagePlace:
    """A stage, or the q, k or v of one.

    Attributes:
        key: the stage.
        part: ``q``, ``k`` or ``v``; empty for the whole.

    """

    key: Key
    part: str = ""

    @property
    def axes(self) -> tuple[str, ...]:
        """Its canonical axes; of the last token's stages of a mixture those of every token."""
        if self.part:
            return ("tokens", "q" if self.part == "q" else "kv")
        axes = canonical_axes(self.key.stage)
        return axes if axes == ("vocab",) or "tokens" in axes else ("tokens", *axes)

    @property
    def lies_as(self) -> str:
        """The stage whose layout words it has."""
        return f"{self.part}_post_rope" if self.part in ("q", "k") else "" if self.part else self.key.stage

    def __str__(self) -> str:
        where = "" if self.key.layer is None else f"layer {self.key.layer} "
        return f"{where}{self.key.stage}{f' ({self.part})' if self.part else ''}"


_WHOLES: Mapping[tuple[str, ...], tuple[tuple[Axis, ...], ...]] = {
    ("tokens", "q"): (("tokens", "heads", "head_dim"), ("tokens", "kv_heads", "groups", "head_dim")),
    ("tokens", "kv"): (
        ("tokens", "kv_heads", "head_dim"),
        ("tokens", ("kv_heads", "repeats"), "head_dim"),
        ("tokens", ("kv_heads", "repeats", "head_dim")),
        ("tokens", "kv_heads", "repeats", "head_dim"),
    ),
    ("heads", "tokens", "keys"): (("kv_heads", "groups", "tokens", "keys"),),
    ("vocab",): (("tokens", "vocab"),),
}
"""Canonical axes -> the other sets of axes that hold the same."""


def _wholes(place: StagePlace, sizes: Sizes) -> Iterator[tuple[tuple[Axis, ...], Mapping[str, Slice]]]:
    yield place.axes, {}
    for whole in _WHOLES.get(place.axes, ()):
        if sizes["groups"] > 1 or "repeats" not in {word for axis in whole for word in words_of(axis)}:
            yield whole, {}
    yield from _slices(place, sizes)


def _slices(place: StagePlace, sizes: Sizes) -> Iterator[tuple[tuple[Axis, ...], Mapping[str, Slice]]]:
    """Yield the slices of fused arrays: gate|up in halves or in turn, q|k|v side by side or by head."""
    width = sizes["ffn"]
    if place.key.stage in ("ffn_gate", "ffn_up"):
        at = int(place.key.stage == "ffn_up")
        yield ("tokens", "ffn"), {"ffn": (at * width, (at + 1) * width, 1)}
        yield ("tokens", "ffn"), {"ffn": (at, 2 * width, 2)}
    if not place.part:
        return
    heads, kv, groups, dim = (sizes[word] for word in ("heads", "kv_heads", "groups", "head_dim"))
    first = {"q": 0, "k": heads, "v": heads + kv}[place.part]
    count = heads if place.part == "q" else kv
    word = "heads" if place.part == "q" else "kv_heads"
    for start in (first, *((first - heads,) if place.part != "q" else ())):  # in q|k|v, and in k|v
        yield place.axes, {place.axes[1]: (start * dim, (start + count) * dim, 1)}
        yield ("tokens", word, "head_dim"), {word: (start, start + count, 1)}
    within, at = ("groups", 0) if place.part == "q" else ("1", groups + int(place.part == "v"))
    cut = {within: (at, at + (groups if place.part == "q" else 1), 1)}
    yield ("tokens", ("kv_heads", within, "head_dim")), cut
    yield ("tokens", "kv_heads", (within, "head_dim")), cut
    yield ("tokens", "kv_heads", within, "head_dim"), cut


def _totals(
    place: StagePlace, whole: Sequence[Axis], take: Mapping[str, Slice], sizes: Sizes
) -> Iterator[Sizes]:
    """Yield the sizes of axes that are taken from, for each array that may be cut so."""
    if not take:
        yield sizes
        return
    ((word, (_, stop, _)),) = take.items()
    heads, kv, dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    if word == "ffn":
        yield {**sizes, word: 2 * sizes["ffn"]}
    elif word in ("groups", "1"):
        yield {**sizes, word: sizes["groups"] + 2}
    else:
        unit = dim if word in ("q", "kv") else 1
        for total in (heads + 2 * kv, heads + kv, 2 * kv):
            if stop <= total * unit and (total != 2 * kv or place.part != "q"):
                yield {**sizes, word: total * unit}


def forms_of(shape: Sequence[int], place: StagePlace, sizes: Sizes) -> list[Form]:
    """Return every form in which an array of ``shape`` may hold ``place``, the most usual first."""
    found: dict[tuple[tuple[Axis, ...], tuple[tuple[str, Slice], ...]], Form] = {}
    for whole, take in _wholes(place, sizes):
        for totals in _totals(place, whole, take, sizes):
            for order in itertools.permutations(whole):
                _keep(found, shape, order, take, totals, changed=order != tuple(whole))
    if place.axes[0] == "tokens" and sizes["tokens"] > 1:
        _keep(found, shape, place.axes[1:], {}, sizes, changed=True, last=True)
    return list(found.values())


def _keep(
    found: dict[tuple[tuple[Axis, ...], tuple[tuple[str, Slice], ...]], Form],
    shape: Sequence[int],
    order: Sequence[Axis],
    take: Mapping[str, Slice],
    sizes: Sizes,
    *,
    changed: bool,
    last: bool = False,
) -> None:
    words = [word for axis in order for word in words_of(axis)]
    for inner in ("groups", "repeats", "1"):
        if inner in words and "kv_heads" in words and words.index(inner) < words.index("kv_heads"):
            return  # heads in their order
    axes = _spread(shape, order, sizes)
    if axes is None:
        return
    padded = "keys" in axes and shape[axes.index("keys")] > sizes["keys"]
    key = (axes, tuple(take.items()))
    oddity = 2 * changed + 3 * bool(take) + 3 * ("repeats" in words) + 2 * padded + 4 * last
    form = Form(
        stored=Stored(axes=axes, take=take),
        words=(Layout.PADDED_KEYS,) if padded else (Layout.LAST_TOKEN,) if last else (),
        last=last,
        oddity=oddity,
    )
    found.setdefault(key, form)


def _spread(shape: Sequence[int], order: Sequence[Axis], sizes: Sizes) -> tuple[Axis, ...] | None:
    """Return ``order`` with axes of 1 where ``shape`` has more of them, ``None`` where it does not fit."""
    axes: list[Axis] = []
    left = list(order)
    for index, size in enumerate(shape):
        wanted = _width(left[0], sizes) if left else -1
        same = bool(left) and (size == wanted or (left[0] == "keys" and size > wanted))
        if same and (size != 1 or len(shape) - index <= len(left)):
            axes.append(left.pop(0))
        elif size == 1:
            axes.append("1")
        else:
            return None
    return tuple(axes) if not left else None


def _width(axis: Axis, sizes: Sizes) -> int:
    return math.prod(sizes["groups"] if word == "repeats" else sizes[word] for word in words_of(axis))


def words_for(place: StagePlace, geometry: Geometry) -> list[tuple[Layout, ...]]:
    """Return the layout words that may be said of ``place``, none first."""
    name = place.lies_as
    words: list[tuple[Layout, ...]] = [()]
    if name in ("q_post_rope", "k_post_rope") and place.key.stage not in ("q_norm", "k_norm"):
        words += [(Layout.INTERLEAVED,), (Layout.SCALED,), (Layout.ROOT_SCALED,)]
        if name == "q_post_rope" and geometry.attn_scales:
            words.append((Layout.HEAD_SCALED,))
        if name == "q_post_rope" and geometry.attn_softcap is not None:
            words.append((Layout.CAP_SCALED,))
    if place.part == "k":
        words.remove((Layout.SCALED,))
    if name == "attn_scores":
        words.append((Layout.UNSCALED,))
    if name in ("router_weights", "moe_router") and geometry.routed_scale != 1.0:
        words.append((Layout.BEFORE_SCALE,))
    return words


def view(
    values: npt.NDArray[np.floating], form: Form, place: StagePlace, sizes: Sizes, geometry: Geometry
) -> F64 | None:
    """Return an array as the place in canonical axes, f64; a last row alone as one row.

    ``None`` where the copies of its heads differ, or its layout cannot be.
    """
    usual = place.axes[1:] if form.last else place.axes
    try:
        plain, axes = unfolded(values, form.stored, sizes)
        found = rearranged(plain, axes, usual, sizes).astype(np.float64)
        if Layout.PADDED_KEYS in form.words:
            found = found[..., : sizes["keys"]]
        words = tuple(word for word in form.words if word not in (Layout.PADDED_KEYS, Layout.LAST_TOKEN))
        if words and not form.last:
            key = Key(place.key.layer, place.lies_as)
            with np.errstate(all="ignore"):
                found = canonical(StageArray(data=found, layout=words), key, geometry, sizes["tokens"])
    except (TraceError, ValueError):
        return None
    return found[None] if form.last else np.asarray(found, dtype=np.float64)


def is_square(place: StagePlace) -> bool:
    """Whether it has a query and a key each."""
    return place.key.stage in SQUARES


def is_score(place: StagePlace) -> bool:
    """Whether a mask may have been added to it."""
    return place.key.stage in SCORES


def is_whole_numbers(place: StagePlace) -> bool:
    """Whether it names experts."""
    return STAGES[place.key.stage].name == "moe_router_indices"
