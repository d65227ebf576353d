"""What a mapping file says of one stage beyond names and plain axes, and what is left for ``mapping.py``.

ffn_up:
  from: {0: t17, 3: t4}                           # names without a pattern, by layer
  axes: [tokens, ffn]
  take: {ffn: [80, 160]}                          # a slice of a longer axis; a third number is a step
k_post_rope:
  from: "L{layer}.k"
  axes: [tokens, [kv_heads, repeats, head_dim]]   # several axes in one; copies of a kv head
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apr_falsify.errors import TraceError
from apr_falsify.reading import items, mapping, text, whole
from apr_falsify.subjects.mapped_parts import REPEATS, Axis, Slice, Stored, words_of

_PLACEHOLDER = "{{layer}}: part {index} of {stage}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainEntry:
    """What the file says of one stage, in plain names and axes, and what these do not say.

    Attributes:
        entry: the keys that are left.
        by_layer: layer -> the array's name, or those of q, k and v; empty where a pattern names them.
        stored: of each name how its array lies; empty where the axes of ``entry`` say it.

    """

    entry: Mapping[str, Any]
    by_layer: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    stored: tuple[Stored, ...] = ()


def plain_entry(stage: str, entry: Mapping[str, Any], where: str) -> PlainEntry:
    """Take out of a stage's entry what plain names and axes cannot say.

    Raises:
        TraceError: it says something that cannot be meant.
        ValueError: a value of another type.

    """
    left = dict(entry)
    by_layer = _by_layer(left.get("from"), f"{where}.from")
    if by_layer:
        count = len(next(iter(by_layer.values())))
        left["from"] = [_PLACEHOLDER.format(index=index, stage=stage) for index in range(count)]
    take = left.pop("take", None)
    if left.get("axes") is None:
        if take is not None:
            raise TraceError(f"{where}.take without {where}.axes", expected="the axes of the array")
        return PlainEntry(entry=left, by_layer=by_layer)
    names = left.get("from")
    apart = isinstance(names, list | tuple) and len(names) > 1
    rows = items(left["axes"], f"{where}.axes") if apart else [left["axes"]]
    cuts = items(take, f"{where}.take") if apart and take is not None else [take] * len(rows)
    if len(cuts) != len(rows):
        raise TraceError(f"{where}.take: {len(cuts)} for {len(rows)} names", expected="one for each name")
    pairs = zip(rows, cuts, strict=True)
    stored = (
        tuple(_stored(row, cut, where) for row, cut in pairs)
        if all(isinstance(r, list) for r in rows)
        else ()
    )
    if all(one.plain for one in stored):
        return PlainEntry(entry=left, by_layer=by_layer)
    flat = [list(one.words) for one in stored]
    return PlainEntry(entry={**left, "axes": flat if apart else flat[0]}, by_layer=by_layer, stored=stored)


def _by_layer(value: object, where: str) -> dict[int, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    found = {}
    for layer, names in value.items():
        number = whole(layer, f"a layer in {where}")
        if number < 0:
            raise TraceError(f"{where}: layer {number}", expected="layers from 0")
        listed = [names] if isinstance(names, str) else items(names, f"{where}.{number}")
        found[number] = tuple(text(name, f"{where}.{number}") for name in listed)
    if not found or len({len(names) for names in found.values()}) > 1 or not all(found.values()):
        raise TraceError(f"{where}: as many names in each layer", expected="{0: NAME, 1: NAME}")
    if len(used := [name for names in found.values() for name in names]) > len(set(used)):
        raise TraceError(f"{where}: a name is there twice", expected="an array for each layer")
    return found


def _stored(row: Sequence[object], take: object, where: str) -> Stored:
    axes: tuple[Axis, ...] = tuple(
        tuple(str(word) for word in axis) if isinstance(axis, list) else str(axis) for axis in row
    )
    words = [word for axis in axes for word in words_of(axis)]
    if words.count(REPEATS) > 1 or (REPEATS in words and "kv_heads" not in words):
        raise TraceError(f"{where}.axes: {REPEATS} are those of kv_heads", expected=f"[kv_heads, {REPEATS}]")
    cuts = {} if take is None else mapping(take, f"{where}.take")
    found: dict[str, Slice] = {}
    for axis, numbers in cuts.items():
        bounds = [whole(number, f"{where}.take.{axis}") for number in items(numbers, f"{where}.take.{axis}")]
        if words.count(str(axis)) != 1:
            raise TraceError(f"{where}.take: no axis {axis!r}, or several", expected="one of its axes")
        if len(bounds) not in (2, 3) or not 0 <= bounds[0] < bounds[1] or (bounds[2:] and bounds[2] < 1):
            raise TraceError(
                f"{where}.take.{axis} is {bounds}", expected="[start, stop] or [start, stop, step]"
            )
        start, stop, step = (*bounds, 1)[:3]
        found[str(axis)] = start, stop, step
    return Stored(axes=axes, take=found)


Names = tuple[str, Mapping[Any, tuple[str, ...]], Sequence[Stored]]
"""A stage, the names of its arrays by layer, and how each lies."""


def check_shared(rows: Iterable[Names]) -> None:
    """Refuse one array under two stages, as far as names alone tell, unless each takes another slice."""
    users: dict[str, list[tuple[str, Stored | None]]] = {}
    for stage, by_layer, stored in rows:
        for names in by_layer.values():
            for index, name in enumerate(names):
                own = stored[index] if stored else None
                for user, other in users.setdefault(name, []):
                    if not _apart(other, own):
                        also = "twice" if user == stage else f"by {user} too"
                        raise TraceError(f"stages.{stage}: {name!r} is used {also}", expected="another array")
                users[name].append((stage, own))


def _apart(one: Stored | None, other: Stored | None) -> bool:
    """Whether two stages take other slices of one array."""
    if one is None or other is None or not one.take or not other.take:
        return False
    if one.take.keys() != other.take.keys():
        return True
    return any(not set(range(*one.take[word])) & set(range(*other.take[word])) for word in one.take)
