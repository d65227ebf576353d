"""The values of one array of a foreign recording: their number format, and what another shape means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.subjects.foreign import BF16_BITS, ForeignArray
from apr_falsify.subjects.mapping import MappingFile, StageMap

F32 = npt.NDArray[np.float32]

FLOATS = ("f16", "bf16", "f32", "f64")
WHOLE = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
MOST_TOKENS = 1 << 20
"""The longest context that any model has: more ids are none."""

_OF_WHOLE_NUMBERS = ("moe_router_indices",)


def remedy_of(found: Sequence[int], expected: Sequence[int]) -> str:
    """Say what to do about another shape than is expected; a batch is told from other mistakes."""
    rest = tuple(expected[1:] if expected[:1] == (1,) else expected)
    if tuple(found[1:]) == rest and len(rest) and found[0] > 1:
        return f"it looks like a batch of {found[0]}: let `row: N` say which row, or save one row of it"
    return "correct the axes, or name the model and the tokens that were run"


def as_f32(array: ForeignArray, row: StageMap, said: MappingFile) -> F32:
    """Return an array's values, flat, exactly or, from f64, rounded to f32.

    Raises:
        TraceError: another number format than is said, none that holds a stage, or beyond the range of f32.

    """
    kind = kind_of(array, row, said)
    values = array.load().reshape(-1)
    if kind == "bf16":
        wide = values.view("<u2").astype(np.uint32)
        wide <<= np.uint32(16)  # in place: a large array is not held three times
        return wide.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a NaN that signals is a NaN all the same
        found: F32 = values.astype(np.float32)
    if kind == "f64" and bool((np.isinf(found) & np.isfinite(values)).any()):
        raise TraceError(
            f"{array.name!r} has values beyond the range of f32",
            where=said.path,
            expected="values below 3.4e38, or infinite ones",
        )
    return found


def kind_of(array: ForeignArray, row: StageMap, said: MappingFile) -> str:
    """Return the number format of an array's values, as it tells itself or the mapping says."""
    bits = array.kind in BF16_BITS
    stated = row.dtype or ("bf16" if bits and said.dtype == "bf16" else None)
    if row.stage in _OF_WHOLE_NUMBERS and array.kind in WHOLE and stated is None:
        return array.kind
    if stated == "bf16" and bits:
        return "bf16"
    if array.kind in FLOATS and stated in (None, array.kind):
        return array.kind
    raise TraceError(
        f"{array.name!r} holds {array.kind}",
        where=said.path,
        expected=f"{stated}, as the mapping says" if stated else ", ".join(FLOATS),
        remedy="dtype: bf16, where these are its bits" if bits else "write the stage as f32",
    )
