"""One array of a foreign recording brought to canonical axes: its shape, its number format, its order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.model.stages import Layout
from apr_falsify.subjects.foreign import BF16_BITS, ForeignArray
from apr_falsify.subjects.mapping import BATCH, MappingFile, StageMap, factors

F32 = npt.NDArray[np.float32]

FLOATS = ("f16", "bf16", "f32", "f64")
WHOLE = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
_OF_WHOLE_NUMBERS = ("moe_router_indices",)


def remedy_of(found: Sequence[int], expected: Sequence[int]) -> str:
    """Say what to do about another shape than is expected; a batch is told from other mistakes."""
    rest = tuple(expected[1:] if expected[:1] == (1,) else expected)
    if tuple(found[1:]) == rest and len(rest) and found[0] > 1:
        return f"it looks like a batch of {found[0]}: let `row: N` say which row, or save one row of it"
    return "correct the axes, or name the model and the tokens that were run"


def stored_sizes(
    row: StageMap, axes: Sequence[str], sizes: Mapping[str, int], found: Sequence[int]
) -> tuple[int, ...]:
    """Return the shape that ``axes`` say; padded keys are as many as were ``found``, at least one a token."""
    expected = []
    for index, axis in enumerate(axes):
        size = sizes.get(axis, 1)
        if axis == "tokens" and Layout.LAST_TOKEN in row.layout:
            size = 1
        more = Layout.PADDED_KEYS in row.layout or row.by_pass  # beyond the keys of a pass is no data
        if axis == "keys" and more and len(found) == len(axes):
            size = max(size, found[index])
        if axis == BATCH and len(found) == len(axes):
            size = found[index]
        expected.append(size)
    return tuple(expected)


def rearranged(
    values: F32, axes: Sequence[str], usual: Sequence[str], sizes: Mapping[str, int], last: int = -1
) -> F32:
    """Bring ``values`` from ``axes`` to the axes ``usual``.

    Of tokens that ``usual`` does not have, the row ``last`` is taken.
    """
    wanted, own = factors(usual), factors(axes)
    split = [
        size if factor == axis else sizes[factor]
        for size, axis in zip(values.shape, axes, strict=True)
        for factor in factors((axis,))
    ]
    values = values.reshape(split)
    if "tokens" in own and "tokens" not in wanted:
        at = own.index("tokens")
        values = np.asarray(values.take(last, axis=at))
        own = (*own[:at], *own[at + 1 :])
    moved = values.transpose([own.index(factor) for factor in wanted])
    widths = dict(zip(wanted, moved.shape, strict=True))
    shape = [math.prod(widths[factor] for factor in factors((axis,))) for axis in usual]
    return np.ascontiguousarray(moved.reshape(shape))


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
