"""What a mapping file says of tokens, passes, positions, padding, rows and ranks.

passes: [13, 1, 1, 1]        # how many tokens each pass computed, or the name of an array
positions: position_ids      # one a token: an array, or numbers
padding: {left: 5}           # or left, right, {right: 3}, {mask: attention_mask}
pad_token: 0                 # what `padding: left` or `right` counts
row: 1                       # which row of a batch
ranks: 2                     # how many tensor-parallel ranks left arrays, {rank} in their names
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apr_falsify.errors import PassesError, TraceError, nearest
from apr_falsify.reading import items, mapping, text, whole
from apr_falsify.subjects.mapping_names import RANK

SIDES = ("left", "right")
_MASK = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Which tokens of a row are padding.

    Attributes:
        side: ``left`` or ``right``; empty where a mask says it.
        count: how many there are, ``None`` for as many as the padding's token stands there.
        mask: the name of an array that is zero at padding, ``None`` where a side says it.

    """

    side: str = ""
    count: int | None = None
    mask: str | None = None


def read_padding(value: object, name: str) -> Padding:
    """Read the key ``padding``.

    Raises:
        PassesError: no such side, or less than no token.
        ValueError: a value of another type.

    """
    if isinstance(value, str):
        return Padding(side=_side(value, name))
    said = mapping(value, name)
    if len(said) != 1:
        raise PassesError(f"{name} says {len(said)} things", expected="one: left, right or mask")
    ((key, what),) = said.items()
    if key == _MASK:
        return Padding(mask=text(what, f"{name}.{key}"))
    return Padding(side=_side(str(key), name), count=_count(what, f"{name}.{key}"))


def _side(word: str, name: str) -> str:
    if word not in SIDES:
        known = (*SIDES, _MASK)
        raise PassesError(
            f"{name} is {word!r}",
            expected="left, right, {left: N}, {right: N} or {mask: NAME}",
            remedy=nearest(word, known),
        )
    return word


def _count(value: object, name: str) -> int:
    count = whole(value, name)
    if count < 0:
        raise PassesError(f"{name} is {count}", expected="a number of tokens, from 0")
    return count


def read_row(value: object, name: str) -> int:
    """Read the key ``row``, or ``pad_token``.

    Raises:
        PassesError: it is below 0.
        ValueError: no whole number.

    """
    return _count(value, name)


def read_numbers(value: object, name: str) -> tuple[int, ...] | str:
    """Read the key ``passes`` or ``positions``: whole numbers, or the name of the array that holds them.

    Raises:
        PassesError: no number, or one below 0.
        ValueError: something that is no whole number.

    """
    if isinstance(value, str):
        return value
    numbers = tuple(_count(number, f"one of {name}") for number in items(value, name))
    if not numbers:
        raise PassesError(f"{name} is empty", expected="one number for each")
    return numbers


SUM = "sum"

MOST_RANKS = 1024


def read_ranks(value: object, name: str) -> int:
    """Read the key ``ranks``.

    Raises:
        PassesError: none, or more than any machine has.
        ValueError: no whole number.

    """
    ranks = whole(value, name)
    if not 1 <= ranks <= MOST_RANKS:
        raise PassesError(f"{name} is {ranks}", expected=f"1 to {MOST_RANKS}")
    return ranks


def read_shards(value: object, names: Sequence[str], axes: Sequence[Sequence[str]], where: str) -> str | None:
    """Read ``shards`` of a stage: the axis along which the arrays of ranks lie, or that they are added up.

    Raises:
        PassesError: no such axis, or no ``{rank}`` in the names.
        ValueError: a value of another type.

    """
    by_rank = {RANK in each for each in names}
    if by_rank == {False} and value is None:
        return None
    if by_rank != {True}:
        raise PassesError(
            f"{where}: not every name has {RANK}", expected=f"{RANK} in all names of a stage that is cut"
        )
    word = "" if value is None else text(value, f"{where}.shards")
    known = [SUM, *dict.fromkeys(axis for each in axes for axis in each)]
    if word and word not in known:
        raise PassesError(
            f"{where}.shards is {word!r}", expected=", ".join(known), remedy=nearest(word, known)
        )
    return word or axes[0][-1]


def read_tokens(value: object, name: str) -> tuple[int, ...] | str:
    """Read the key ``tokens``: the ids, or the name of the array that holds them.

    Raises:
        TraceError: no id.
        ValueError: a value of another type.

    """
    if isinstance(value, str):
        return value
    ids = tuple(whole(token, f"one of {name}") for token in items(value, name))
    if not ids:
        raise TraceError(f"{name} is empty", expected="the token ids that were run")
    return ids


KEYS: Mapping[str, Any] = {
    "tokens": read_tokens,
    "passes": read_numbers,
    "positions": read_numbers,
    "padding": read_padding,
    "pad_token": read_row,
    "row": read_row,
    "ranks": read_ranks,
}
"""Key of the file -> what reads it."""
