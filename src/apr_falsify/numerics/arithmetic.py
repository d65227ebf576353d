"""Number formats and their exact rounding: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import UsageError, nearest

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number format in which a stage's values are stored.

    Attributes:
        name: its name.
        compute: the NumPy type in which its values lie and are computed with.
        unit_roundoff: half the distance from 1 to the next larger number.
        round: rounds values, to nearest and ties to even, to what the format can hold.

    """

    name: str
    compute: type[np.float32] | type[np.float64]
    unit_roundoff: float
    round: Callable[[Array], Array]


def round_f32(values: Array) -> npt.NDArray[np.float32]:
    """Round to IEEE binary32, to nearest, ties to even; beyond its range is infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def round_bf16(values: Array) -> npt.NDArray[np.float32]:
    """Round f32 to bfloat16 (its upper 16 bits), to nearest, ties to even; NaN stays NaN."""
    bits = np.array(round_f32(values)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))


def round_f16(values: Array) -> npt.NDArray[np.float32]:
    """Round to IEEE binary16, to nearest, ties to even; beyond 65504 is infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


FORMATS: Mapping[str, Format] = {
    "f64": Format(name="f64", compute=np.float64, unit_roundoff=2.0**-53, round=lambda x: x),
    "f32": Format(name="f32", compute=np.float32, unit_roundoff=2.0**-24, round=round_f32),
    "f16": Format(name="f16", compute=np.float32, unit_roundoff=2.0**-11, round=round_f16),
    "bf16": Format(name="bf16", compute=np.float32, unit_roundoff=2.0**-8, round=round_bf16),
}
"""The formats of activations and stored stages."""


def format_named(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        UsageError: no format has that name.

    """
    try:
        return FORMATS[name]
    except KeyError:
        raise UsageError(
            f"unknown number format {name!r}", expected=", ".join(FORMATS), remedy=nearest(name, FORMATS)
        ) from None
