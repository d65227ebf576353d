"""Bring captured stages to their canonical shape by their declared layout words.

Only what a runtime declares is undone; nothing is guessed here. What one side does not hold (scores
above the diagonal, tokens before the last) is left out on both sides, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.errors import TraceError
from apr_falsify.model.passes import Mask, Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import (
    HEAD_WIDTHS,
    PER_HEAD,
    ROWS,
    SCORES,
    SQUARES,
    STAGES,
    Key,
    Layout,
    recorded_shape,
)
from apr_falsify.operators.roundoff import TINY
from apr_falsify.operators.softcap import softcap
from apr_falsify.traces.trace import StageArray

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """One stage of both sides in a comparable form.

    Attributes:
        oracle: the oracle's values.
        subject: the subject's, in the same shape where the geometries agree.
        axes: what the axes mean.
        layout: the layout words that were acted upon, on either side, in the order of :class:`Layout`.

    """

    oracle: Array
    subject: Array
    axes: Axes
    layout: tuple[Layout, ...]


_ROTARY_COLUMNS: Mapping[str, Callable[[Geometry], int]] = {
    **dict.fromkeys(("q_up", "q_post_rope"), lambda geometry: geometry.heads * geometry.head_dim),
    **dict.fromkeys(("k_shared", "k_rope"), lambda geometry: geometry.rope.width(geometry.head_dim)),
    "k_post_rope": lambda geometry: geometry.kv_heads * geometry.head_dim,
    "qkv_matmul": lambda geometry: (geometry.heads + geometry.kv_heads) * geometry.head_dim,
    "qkv_bias": lambda geometry: (geometry.heads + geometry.kv_heads) * geometry.head_dim,
}
"""Stage -> how many of its leading columns are rotary pairs; v is not rotated."""


_ROTATED_ALONE = ("k_shared", "k_rope")
"""Those of them that are the rotated channels of one head and nothing else."""

_INNER = ("q_up", *_ROTATED_ALONE)

FACTORS: Mapping[Layout, Callable[[Geometry, int | None], float]] = {
    Layout.SCALED: lambda geometry, layer: geometry.attn_scale_at(layer),
    Layout.ROOT_SCALED: lambda geometry, layer: math.sqrt(geometry.attn_scale_at(layer)),
    Layout.HEAD_SCALED: lambda geometry, layer: 1 / math.sqrt(geometry.head_dim),
    Layout.CAP_SCALED: lambda geometry, layer: geometry.attn_scale_at(layer) / (geometry.attn_softcap or 1.0),
    Layout.BEFORE_SCALE: lambda geometry, layer: 1 / geometry.routed_scale,
}
"""Word -> what a stage was multiplied with: q or k so that the scores need it no more, weights of experts so
that the sum needs it still."""

_ROUTED = ("router_weights", "moe_router")
"""Stages that hold weights of experts."""

_BOTH = (Layout.ROOT_SCALED,)
"""Those of :data:`FACTORS` that are in k as well where q, k and v lie in one array; the others are in q."""

_ACTS: Mapping[Layout, Callable[[str], bool]] = {
    Layout.HEAD_MAJOR: lambda name: name in PER_HEAD or STAGES[name].axes[-1] == "qkv",
    Layout.INTERLEAVED: lambda name: name in _ROTARY_COLUMNS,
    Layout.ROTARY_FIRST: lambda name: name in _ROTARY_COLUMNS and name not in _ROTATED_ALONE,
    # Not attn_softmax: it is zero there by meaning, and zeroing the other side would hide a fault.
    Layout.CAUSAL_ZEROED: lambda name: name in SCORES,
    Layout.UNSCALED: lambda name: name in SCORES,
    Layout.PADDED_KEYS: lambda name: STAGES[name].axes[-1] == "tokens",
    Layout.LAST_TOKEN: lambda name: STAGES[name].axes[0] == "tokens",
    Layout.TRANSPOSED: lambda name: len(STAGES[name].axes) > 1,
    Layout.VISIBLE_ONLY: lambda name: name in SQUARES,
    **dict.fromkeys(FACTORS, lambda name: name in _ROTARY_COLUMNS and name not in _INNER),
    Layout.BEFORE_SCALE: lambda name: name in _ROUTED,
}
"""Whether each word says anything about a stage; elsewhere it is passed over."""


def _effective(array: StageArray, name: str) -> set[Layout]:
    return {word for word in array.layout if _ACTS[word](name)}


def canonical(array: StageArray, key: Key, geometry: Geometry, passes: Passes | int) -> Array:
    """Return a stage in its canonical shape; the very data where there is nothing to do.

    What was not stored cannot be restored: a ``last-token`` stage comes back without its token axis, a
    ``causal-zeroed`` one with its zeros; :func:`aligned` deals with both. Beyond a pass's keys it is zero.

    Args:
        array: the stage as captured.
        key: its layer and name; a constant may differ from layer to layer.
        geometry: the model's geometry.
        passes: how the run computed its tokens; S where it did so at once.

    Raises:
        TraceError: the number of values fits no shape of this layout and geometry.

    """
    name, words = key.stage, _effective(array, key.stage)
    passes = _passes(passes)
    data = array.data
    for word, undo in _UNDO.items():
        if word in words:
            data = undo(data, key, geometry, Passes.whole(1) if Layout.LAST_TOKEN in words else passes)
    shape = _shape(name, geometry, passes, Layout.LAST_TOKEN in words)
    if data.size != math.prod(shape):
        raise TraceError(
            f"{array.data.size} values in the shape {list(array.data.shape)} do not fit {name}",
            where=name,
            expected=f"{list(shape)}, stored as: {', '.join(array.layout) or 'canonical'}",
            remedy="check that model, token ids and the runtime's declared layout belong to the trace",
        )
    data = data.reshape(shape)
    if name in SQUARES and not passes.plain:
        data = np.where(passes.met()[passes.unseen :], data, data.dtype.type(0))
    return data


def _passes(passes: Passes | int) -> Passes:
    return passes if isinstance(passes, Passes) else Passes.whole(passes)


def _shape(name: str, geometry: Geometry, passes: Passes, last_only: bool) -> tuple[int, ...]:
    shape = recorded_shape(name, {**geometry.dims(passes.tokens), ROWS: passes.rows})
    return shape[1:] if last_only else shape


def _sized(data: Array, name: str, shape: tuple[int, ...]) -> Array:
    if data.size != math.prod(shape):
        raise TraceError(f"the shape is {list(data.shape)}", where=name, expected=str(list(shape)))
    return data.reshape(shape)


def _token_major(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """[heads, S, D] -> [S, heads * D]."""
    tokens, dims, axis = passes.rows, geometry.dims(passes.rows), STAGES[key.stage].axes[-1]
    width, size = dims[axis], dims[HEAD_WIDTHS.get(axis, "head_dim")]
    heads = _sized(data, key.stage, (width // size, tokens, size))
    return heads.swapaxes(0, 1).reshape(tokens, width)


def _half_split(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """Within each head, (0,1), (2,3) ... -> (0, R/2), (1, R/2 + 1) ... of the R that are rotated; v stays."""
    tokens = passes.rows
    width = geometry.dims(tokens)[STAGES[key.stage].axes[-1]]
    split = np.array(_sized(data, key.stage, (tokens, width)))
    columns = _ROTARY_COLUMNS[key.stage](geometry)
    turned, start = geometry.rope.width(geometry.head_dim), geometry.rotary_start(key.layer)
    alone = key.stage in _ROTATED_ALONE
    heads = split[:, :columns].reshape(tokens, -1, turned if alone else geometry.head_dim)  # a view
    start = 0 if alone else start
    rotated = np.s_[..., start : start + turned]
    pairs = np.array(heads[rotated]).reshape(tokens, -1, turned // 2, 2)
    heads[rotated] = pairs.swapaxes(-1, -2).reshape(tokens, -1, turned)
    return split


def _rotary_last(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """Within each head of latent attention, the rotated channels behind the others; v stays."""
    if not geometry.kv_latent:
        return data
    tokens = passes.rows
    found = np.array(_sized(data, key.stage, (tokens, geometry.dims(tokens)[STAGES[key.stage].axes[-1]])))
    heads = found[:, : _ROTARY_COLUMNS[key.stage](geometry)].reshape(tokens, -1, geometry.head_dim)  # a view
    heads[:] = np.roll(heads, -geometry.rope.width(geometry.head_dim), axis=-1)
    return found


def _scaled(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """q.k -> scaled q.k, in f64: rounding here would be taken for the runtime's."""
    return softcap(
        np.multiply(data, geometry.attn_scale_at(key.layer), dtype=np.float64), geometry.attn_softcap
    )


def _unmultiplied(word: Layout) -> Callable[[Array, Key, Geometry, Passes], Array]:
    """Return what divides by the factor of ``word``, in f64; columns of v stay."""

    def undo(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
        if key.stage in _ROUTED:
            return np.divide(data, FACTORS[word](geometry, key.layer), dtype=np.float64)
        tokens = passes.rows
        width = geometry.dims(tokens)[STAGES[key.stage].axes[-1]]
        found = np.array(_sized(data, key.stage, (tokens, width)), dtype=np.float64)
        both = word in _BOTH or key.stage == "k_post_rope"
        columns = _ROTARY_COLUMNS[key.stage if both else "q_post_rope"](geometry)
        found[:, :columns] /= FACTORS[word](geometry, key.layer)
        return found

    return undo


def _visible(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """Put zeros where no query may look; of a softmax only where no weight stands: any other is a fault."""
    assert key.layer is not None
    found = _sized(data, key.stage, (geometry.heads, passes.rows, passes.tokens))
    used = passes.visible(geometry.windows[key.layer])[passes.unseen :]
    return np.where(used if key.stage in SCORES else used | np.isfinite(found), found, 0)


def _without_padding(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """[heads, S, padded] -> [heads, S, S]; what lies beyond S is no data."""
    tokens, rows = passes.tokens, geometry.heads * passes.rows
    if data.size % rows or data.size < rows * tokens:
        expected = f"{geometry.heads} heads x {passes.rows} tokens x at least {tokens} keys"
        raise TraceError(f"the shape is {list(data.shape)}", where=key.stage, expected=expected)
    return data.reshape(geometry.heads, passes.rows, -1)[:, :, :tokens]


def _untransposed(data: Array, key: Key, geometry: Geometry, passes: Passes) -> Array:
    """[..., C, S] -> [..., S, C]; a single row is the same either way."""
    return data.swapaxes(-1, -2) if data.ndim > 1 else data


_UNDO: Mapping[Layout, Callable[[Array, Key, Geometry, Passes], Array]] = {
    Layout.TRANSPOSED: _untransposed,
    Layout.PADDED_KEYS: _without_padding,
    Layout.HEAD_MAJOR: _token_major,
    Layout.ROTARY_FIRST: _rotary_last,
    Layout.INTERLEAVED: _half_split,
    **{word: _unmultiplied(word) for word in FACTORS},
    Layout.UNSCALED: _scaled,
    Layout.VISIBLE_ONLY: _visible,
}
"""What undoes each word, in the order in which they are undone."""


def factor_of(key: Key, layout: Collection[Layout], geometry: Geometry) -> float:
    """Return what a stage laid out so was multiplied with before it was stored, in some columns at least."""
    return math.prod(FACTORS[word](geometry, key.layer) for word in layout if word in FACTORS)


_HELD: Mapping[Layout, Callable[[Passes, int | None], Mask]] = {
    Layout.CAUSAL_ZEROED: lambda passes, window: passes.visible(None),
    Layout.VISIBLE_ONLY: lambda passes, window: passes.visible(window),
}
"""Layout word -> where it holds scores, given the passes and the layer's window."""


def only_data(
    values: Array, key: Key, layout: Collection[Layout], geometry: Geometry, passes: Passes | int
) -> Array:
    """Return ``values``, in canonical shape, with zeros where a stage laid out so holds no data.

    Args:
        values: what the whole stage would be.
        key: its layer and name.
        layout: how a side stores it.
        geometry: the model's geometry.
        passes: how the run computed its tokens; S where it did so at once.

    """
    layer, name = key
    passes = _passes(passes)
    if name in SCORES and layer is not None:
        for word in _HELD.keys() & set(layout):
            stored = _HELD[word](passes, geometry.windows[layer])
            values = np.where(stored[len(stored) - values.shape[-2] :], values, 0)
    held = _data_of(values, name, passes)
    return values if held is None else np.where(held, values, 0)


def of_data(sigma: Array, name: str, passes: Passes, elsewhere: float = TINY) -> Array:
    """Return the sigma of a stage, ``elsewhere`` where it is no data: both sides are zero there."""
    held = _data_of(sigma, name, passes)
    return sigma if held is None else np.where(held, sigma, elsewhere)


def _data_of(values: Array, name: str, passes: Passes) -> Mask | None:
    """Return where a stage of such passes is data, ``None`` for everywhere: [rows, S], or [rows, 1]."""
    axes = STAGES[name].axes
    if passes.plain or "tokens" not in axes or values.ndim < len(axes):
        return None
    if name in SQUARES:
        held = passes.computed() if name in SCORES else passes.weighted()
    elif passes.padding:
        held = passes.rows_held()[:, None]
    else:
        return None
    return held[len(held) - values.shape[axes.index("tokens")] :]


def aligned(
    key: Key,
    oracle: StageArray,
    subject: StageArray,
    geometry: Geometry,
    passes: Passes | int,
    subjects: Passes | None = None,
) -> Aligned:
    """Bring a stage of both sides to one form, by their declared layouts and passes.

    Where one side keeps only the last tokens, the other's last rows are taken; where one side holds no
    scores, above the diagonal say, the other's are made zero.

    Args:
        key: the stage's layer and name.
        oracle: as the oracle stores it.
        subject: as the subject stores it.
        geometry: the model's geometry.
        passes: how the oracle computed its tokens; S where it did so at once.
        subjects: how the subject did; ``None``: in the same passes.

    Raises:
        TraceError: a side's values fit no shape of its layout and this geometry.

    """
    runs = (_passes(passes), _passes(passes) if subjects is None else subjects)
    sides = [canonical(side, key, geometry, run) for side, run in zip((oracle, subject), runs, strict=True)]
    declared = [_effective(side, key.stage) for side in (oracle, subject)]
    words = declared[0] | declared[1]
    axes = axes_of(key.stage, geometry)
    if Layout.LAST_TOKEN in words:
        axes = axes.of_last_token()
        sides = [
            side if Layout.LAST_TOKEN in own else side[-1] for side, own in zip(sides, declared, strict=True)
        ]
    elif "tokens" in STAGES[key.stage].axes:
        axis, rows = STAGES[key.stage].axes.index("tokens"), min(run.rows for run in runs)
        axes = axes.from_token(runs[0].tokens - rows)
        sides = [
            side.take(range(side.shape[axis] - rows, side.shape[axis]), axis)
            if side.shape[axis] > rows
            else side
            for side in sides
        ]
    for run in runs:
        sides = [
            only_data(side, key, words - own, geometry, run)
            for side, own in zip(sides, declared, strict=True)
        ]
    in_order = tuple(word for word in Layout if word in words)
    return Aligned(oracle=sides[0], subject=sides[1], axes=axes, layout=in_order)
