"""Which number format the values of arrays show, whatever format they are saved in.

The values of a 16-bit format have few digits, and arbitrary ones use them all. One stage proves nothing: an
embedding holds rows of a checkpoint that may be of 16 bits itself, zeros, whole numbers and powers of two are
values of every format. Most stages of a run, with all of a format's digits, can only be rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.numerics.arithmetic import FORMATS, Format

Values = npt.NDArray[Any]

SIXTEEN_BITS = (FORMATS["bf16"], FORMATS["f16"])
"""The formats that are looked for, that of fewer digits first: f16 holds nearly all of its values too."""

SAYS_NOTHING = ("embedding", "moe_router_indices")
"""Stages that are rows of a checkpoint, or whole numbers."""

_SHARE = 1 / 2
"""The share of arrays that must hold a format's values: some ports keep residual stream, norms or softmax in
f32. A fault that rounds a stage rounds one or two of some twenty."""

_NAMES = 3
"""Under how many names, which are stages, they must be seen at least."""

_VALUES = 16
"""How many values of an array must be other than zero for it to say anything."""

_DIGITS = 2
_USED = 0.25
"""The share of values that must use the last two digits of the format, of arbitrary ones 3 in 4 do; and that
must be no multiple of the largest one's last digit, as small whole numbers are."""

_FIRST = 512
"""How many values are looked at first: an array of other values seldom needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A format that arrays show.

    Attributes:
        format: the format.
        holding: how many arrays hold no other values.
        arrays: how many arrays say anything.
        others: the names of those that hold other values.

    """

    format: Format
    holding: int
    arrays: int
    others: tuple[str, ...]


def seen_format(arrays: Iterable[tuple[str, Values]]) -> Seen | None:
    """Return the 16-bit format whose values ``arrays``, by stage or name, hold; ``None`` where it is none."""
    named = [(name, values) for name, values in arrays if name not in SAYS_NOTHING]
    found = (_seen(named, one) for one in SIXTEEN_BITS)
    return next((seen for seen in found if seen is not None), None)


def _seen(arrays: list[tuple[str, Values]], wanted: Format) -> Seen | None:
    holding: list[str] = []
    others: list[str] = []
    for name, values in arrays:
        if not holds(wanted, values):
            others.append(name)
        elif _uses_its_digits(wanted, values):
            holding.append(name)
    count = len(holding) + len(others)
    if len(set(holding)) < _NAMES or len(holding) < _SHARE * count:
        return None
    names = tuple(dict.fromkeys(others))
    return Seen(format=wanted, holding=len(holding), arrays=count, others=names)


def holds(wanted: Format, values: Values) -> bool:
    """Whether every finite value is one that the format has."""
    flat = values.reshape(-1)
    for some in (flat[:_FIRST], flat):
        finite = some[np.isfinite(some)]
        if not np.array_equal(wanted.round(finite), finite):
            return False
    return True


def _uses_its_digits(wanted: Format, values: Values) -> bool:
    """Whether the values are so many, and of so many digits, that chance does not explain what they are."""
    used = values[np.isfinite(values) & (values != 0)]
    if used.size < _VALUES:
        return False
    digits = round(-math.log2(wanted.unit_roundoff))
    parts, exponents = np.frexp(used.astype(np.float64))
    coarser = parts * 2.0 ** (digits - _DIGITS)
    steps = used / 2.0 ** (float(np.max(exponents)) - digits)
    return all(float(np.mean(each != np.rint(each))) >= _USED for each in (coarser, steps))
