"""The axes of a recorded array: how large each is, and how they are brought to those of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Layout
from apr_falsify.subjects.mapping import BATCH, StageMap, factors

F32 = npt.NDArray[np.float32]

_V = 2
"""The index of v among q, k and v."""


def axis_sizes(geometry: Geometry, tokens: int) -> dict[str, int]:
    """Return the size of each axis word of a mapping file in a run of ``tokens`` tokens."""
    return {
        **geometry.dims(tokens),
        "keys": tokens,
        "kv_heads": geometry.kv_heads,
        "groups": geometry.heads // geometry.kv_heads,
        "qkv_heads": geometry.heads + 2 * geometry.kv_heads,
        "layers": geometry.layers,
        "1": 1,
    }


def as_sized(sizes: Mapping[str, int], stage: str, part: int | None) -> Mapping[str, int]:
    """Return the sizes of axis words as a stage, or its q, k or v (``part`` 0, 1 or 2), has them.

    A head is as wide as one of v in ``attention`` and in v itself; in an array of q|k|v whose heads have two
    widths no head stands apart.
    """
    if sizes["v_head_dim"] == sizes["head_dim"]:
        return sizes
    if stage == "attention" or part == _V:
        return {**sizes, "head_dim": sizes["v_head_dim"], "q": sizes["mixed"], "kv": sizes["v"]}
    joined = STAGES[stage].axes[-1] == "qkv" and part is None
    return {**sizes, "qkv_heads": sizes["qkv"], "head_dim": 1} if joined else sizes


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
