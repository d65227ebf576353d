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
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SCORES, SQUARES, STAGES, Key, Layout
from apr_falsify.operators.attention import visible_keys
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
    "q_post_rope": lambda geometry: geometry.heads * geometry.head_dim,
    "k_post_rope": lambda geometry: geometry.kv_heads * geometry.head_dim,
    "qkv_matmul": lambda geometry: (geometry.heads + geometry.kv_heads) * geometry.head_dim,
    "qkv_bias": lambda geometry: (geometry.heads + geometry.kv_heads) * geometry.head_dim,
}
"""Stage -> how many of its leading columns are rotary pairs; v is not rotated."""


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
    Layout.HEAD_MAJOR: lambda name: (
        STAGES[name].axes in (("tokens", "q"), ("tokens", "kv"), ("tokens", "qkv"))
    ),
    Layout.INTERLEAVED: lambda name: name in _ROTARY_COLUMNS,
    # Not attn_softmax: it is zero there by meaning, and zeroing the other side would hide a fault.
    Layout.CAUSAL_ZEROED: lambda name: name in SCORES,
    Layout.UNSCALED: lambda name: name in SCORES,
    Layout.PADDED_KEYS: lambda name: STAGES[name].axes[-1] == "tokens",
    Layout.LAST_TOKEN: lambda name: STAGES[name].axes[0] == "tokens",
    Layout.TRANSPOSED: lambda name: len(STAGES[name].axes) > 1,
    Layout.VISIBLE_ONLY: lambda name: name in SQUARES,
    **dict.fromkeys(FACTORS, lambda name: name in _ROTARY_COLUMNS),
    Layout.BEFORE_SCALE: lambda name: name in _ROUTED,
}
"""Whether each word says anything about a stage; elsewhere it is passed over."""


def _effective(array: StageArray, name: str) -> set[Layout]:
    return {word for word in array.layout if _ACTS[word](name)}


def canonical(array: StageArray, key: Key, geometry: Geometry, tokens: int) -> Array:
    """Return a stage in its canonical shape; the very data where there is nothing to do.

    What was not stored cannot be restored: a ``last-token`` stage comes back without its token axis, a
    ``causal-zeroed`` one with its zeros; :func:`aligned` deals with both.

    Args:
        array: the stage as captured.
        key: its layer and name; a constant may differ from layer to layer.
        geometry: the model's geometry.
        tokens: S, the number of tokens that were run.

    Raises:
        TraceError: the number of values fits no shape of this layout and geometry.

    """
    name, words = key.stage, _effective(array, key.stage)
    data = array.data
    for word, undo in _UNDO.items():
        if word in words:
            data = undo(data, key, geometry, 1 if Layout.LAST_TOKEN in words else tokens)
    shape = _shape(name, geometry, tokens, Layout.LAST_TOKEN in words)
    if data.size != math.prod(shape):
        raise TraceError(
            f"{array.data.size} values in the shape {list(array.data.shape)} do not fit {name}",
            where=name,
            expected=f"{list(shape)}, stored as: {', '.join(array.layout) or 'canonical'}",
            remedy="check that model, token ids and the runtime's declared layout belong to the trace",
        )
    return data.reshape(shape)


def _shape(name: str, geometry: Geometry, tokens: int, last_only: bool) -> tuple[int, ...]:
    dims = geometry.dims(tokens)
    shape = tuple(dims[axis] for axis in STAGES[name].axes)
    return shape[1:] if last_only else shape


def _sized(data: Array, name: str, shape: tuple[int, ...]) -> Array:
    if data.size != math.prod(shape):
        raise TraceError(f"the shape is {list(data.shape)}", where=name, expected=str(list(shape)))
    return data.reshape(shape)


def _token_major(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """[heads, S, D] -> [S, heads * D]."""
    width = geometry.dims(tokens)[STAGES[key.stage].axes[-1]]
    heads = _sized(data, key.stage, (width // geometry.head_dim, tokens, geometry.head_dim))
    return heads.swapaxes(0, 1).reshape(tokens, width)


def _half_split(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """Within each head, (0,1), (2,3) ... -> (0, R/2), (1, R/2 + 1) ... of the R that are rotated; v stays."""
    width = geometry.dims(tokens)[STAGES[key.stage].axes[-1]]
    split = np.array(_sized(data, key.stage, (tokens, width)))
    columns = _ROTARY_COLUMNS[key.stage](geometry)
    heads = split[:, :columns].reshape(tokens, -1, geometry.head_dim)  # a view
    turned = geometry.rope.width(geometry.head_dim)
    pairs = np.array(heads[..., :turned]).reshape(tokens, -1, turned // 2, 2)
    heads[..., :turned] = pairs.swapaxes(-1, -2).reshape(tokens, -1, turned)
    return split


def _scaled(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """q.k -> scaled q.k, in f64: rounding here would be taken for the runtime's."""
    return softcap(
        np.multiply(data, geometry.attn_scale_at(key.layer), dtype=np.float64), geometry.attn_softcap
    )


def _unmultiplied(word: Layout) -> Callable[[Array, Key, Geometry, int], Array]:
    """Return what divides by the factor of ``word``, in f64; columns of v stay."""

    def undo(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
        if key.stage in _ROUTED:
            return np.divide(data, FACTORS[word](geometry, key.layer), dtype=np.float64)
        width = geometry.dims(tokens)[STAGES[key.stage].axes[-1]]
        found = np.array(_sized(data, key.stage, (tokens, width)), dtype=np.float64)
        both = word in _BOTH or key.stage == "k_post_rope"
        columns = _ROTARY_COLUMNS[key.stage if both else "q_post_rope"](geometry)
        found[:, :columns] /= FACTORS[word](geometry, key.layer)
        return found

    return undo


def _visible(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """Put zeros where no query may look; of a softmax only where no weight stands: any other is a fault."""
    assert key.layer is not None
    found = _sized(data, key.stage, (geometry.heads, tokens, tokens))
    used = visible_keys(tokens, geometry.windows[key.layer])
    return np.where(used if key.stage in SCORES else used | np.isfinite(found), found, 0)


def _without_padding(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """[heads, S, padded] -> [heads, S, S]; what lies beyond S is no data."""
    rows = geometry.heads * tokens
    if data.size % rows or data.size < rows * tokens:
        expected = f"{geometry.heads} heads x {tokens} tokens x at least {tokens} keys"
        raise TraceError(f"the shape is {list(data.shape)}", where=key.stage, expected=expected)
    return data.reshape(geometry.heads, tokens, -1)[:, :, :tokens]


def _untransposed(data: Array, key: Key, geometry: Geometry, tokens: int) -> Array:
    """[..., C, S] -> [..., S, C]; a single row is the same either way."""
    return data.swapaxes(-1, -2) if data.ndim > 1 else data


_UNDO: Mapping[Layout, Callable[[Array, Key, Geometry, int], Array]] = {
    Layout.TRANSPOSED: _untransposed,
    Layout.PADDED_KEYS: _without_padding,
    Layout.HEAD_MAJOR: _token_major,
    Layout.INTERLEAVED: _half_split,
    **{word: _unmultiplied(word) for word in FACTORS},
    Layout.UNSCALED: _scaled,
    Layout.VISIBLE_ONLY: _visible,
}
"""What undoes each word, in the order in which they are undone."""


def factor_of(key: Key, layout: Collection[Layout], geometry: Geometry) -> float:
    """Return what a stage laid out so was multiplied with before it was stored, in some columns at least."""
    return math.prod(FACTORS[word](geometry, key.layer) for word in layout if word in FACTORS)


_HELD: Mapping[Layout, Callable[[int, int | None], npt.NDArray[np.bool_]]] = {
    Layout.CAUSAL_ZEROED: lambda tokens, window: visible_keys(tokens, None),
    Layout.VISIBLE_ONLY: visible_keys,
}
"""Layout word -> where it holds scores, given S and the layer's window."""


def only_data(values: Array, key: Key, layout: Collection[Layout], geometry: Geometry) -> Array:
    """Return ``values``, in canonical shape, with zeros where a stage laid out so holds no data.

    Args:
        values: what the whole stage would be.
        key: its layer and name.
        layout: how a side stores it.
        geometry: the model's geometry.

    """
    layer, name = key
    if name not in SCORES or layer is None:
        return values
    for word in _HELD.keys() & set(layout):
        values = np.where(_HELD[word](values.shape[-1], geometry.windows[layer]), values, 0)
    return values


def aligned(key: Key, oracle: StageArray, subject: StageArray, geometry: Geometry, tokens: int) -> Aligned:
    """Bring a stage of both sides to one form, by their declared layouts.

    Where one side keeps only the last token, the other's last row is taken; where one side holds no
    scores, above the diagonal say, the other's are made zero.

    Args:
        key: the stage's layer and name.
        oracle: as the oracle stores it.
        subject: as the subject stores it.
        geometry: the model's geometry.
        tokens: S, the number of tokens that were run.

    Raises:
        TraceError: a side's values fit no shape of its layout and this geometry.

    """
    sides = [canonical(side, key, geometry, tokens) for side in (oracle, subject)]
    declared = [_effective(side, key.stage) for side in (oracle, subject)]
    words = declared[0] | declared[1]
    axes = axes_of(key.stage, geometry)
    if Layout.LAST_TOKEN in words:
        axes = axes.of_last_token()
        sides = [
            side if Layout.LAST_TOKEN in own else side[-1] for side, own in zip(sides, declared, strict=True)
        ]
    sides = [only_data(side, key, words - own, geometry) for side, own in zip(sides, declared, strict=True)]
    in_order = tuple(word for word in Layout if word in words)
    return Aligned(oracle=sides[0], subject=sides[1], axes=axes, layout=in_order)
