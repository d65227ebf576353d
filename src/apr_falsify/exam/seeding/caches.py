"""Wrong formulas of runs in passes: positions, masks, and what a cache of keys and values hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.seeding.formulas import softmax
from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import RULES, Operation
from apr_falsify.operators.operator import Array
from apr_falsify.operators.rotation import farthest, rope_frequencies

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Positions = Callable[[Passes], F64]
"""Where the tokens so far stand instead, [S]."""
Spoil = Callable[[Array, Scene], None]
"""Changes in place what is read of a cache: keys or values of the tokens so far, [S, K*D]."""
Visible = Callable[[Passes, int | None], Mask]
"""Which key each token so far sees, [S, S], given the layer's window."""


# --- positions -------------------------------------------------------------------------------------------


def placed(at: Positions, parts: str = "qk") -> Formula:
    """Turn q and k, or one of them, by other positions."""

    def wrong(scene: Scene) -> Array:
        if scene.name[0] not in parts:
            return scene.right()
        other = replace(scene.passes, positions=tuple(int(each) for each in at(scene.passes)))
        return scene.site.moved(passes=other).run(scene.name, scene.inputs)

    return wrong


def _later(passes: Passes) -> Mask:
    """Return which tokens are of a pass after the first."""
    return np.arange(passes.tokens) >= passes.sizes[0]


def moved(by: int) -> Positions:
    """Let tokens after the first pass stand ``by`` further."""
    return lambda passes: np.maximum(passes.at + by * _later(passes), 0)


def restarted(passes: Passes) -> F64:
    """Begin again at 0 in each pass."""
    return np.asarray(passes.at - np.repeat(passes.at[list(passes.starts)], passes.sizes))


def standing(passes: Passes) -> F64:
    """Leave all tokens after the first pass where the first of them stands."""
    first = passes.at[min(passes.sizes[0], passes.tokens - 1)]
    return np.where(_later(passes), first, passes.at)


def run_on(passes: Passes) -> F64:
    """Count padding too."""
    return np.arange(passes.tokens, dtype=np.float64)


def run_on_later(passes: Passes) -> F64:
    """Count padding too, in all passes but the first."""
    return np.where(_later(passes), run_on(passes), passes.at)


def as_if_full(passes: Passes) -> F64:
    """Place the last chunk as if it were as long as the first."""
    missing = passes.sizes[0] - passes.sizes[-1]
    return np.asarray(passes.at + missing * (np.arange(passes.tokens) >= passes.starts[-1]))


# --- what a cache hands out ------------------------------------------------------------------------------


def keys(spoil: Spoil) -> Formula:
    """Spoil the keys that passes after the first read."""

    def wrong(scene: Scene) -> Array:
        if not scene.passes.unseen:
            return scene.right()
        held = np.array(scene.inputs["k_post_rope"])
        spoil(held, scene)
        return scene.fed(k_post_rope=held)

    return wrong


def values(spoil: Spoil) -> Formula:
    """Spoil the values that passes after the first read."""

    def wrong(scene: Scene) -> Array:
        if not scene.passes.unseen:
            return scene.right()
        held = np.array(scene.inputs["qkv_bias"])
        spoil(held[:, scene.columns("v")], scene)
        return scene.fed(qkv_bias=held)

    return wrong


def _two(scene: Scene) -> tuple[int, int]:
    """Return two cached positions of the first pass, chosen by the seed."""
    first, last = scene.passes.padding, scene.passes.sizes[0]
    one, other = np.random.default_rng(scene.seed).choice(last - first, 2, replace=False) + first
    return int(one), int(other)


def stale(held: Array, scene: Scene) -> None:
    """Give one position what another one left."""
    at, source = _two(scene)
    held[at] = held[source]


def exchanged(held: Array, scene: Scene) -> None:
    """Exchange two positions."""
    both = list(_two(scene))
    held[both] = held[both[::-1]]


def shifted(held: Array, scene: Scene) -> None:
    """Shift everything that is cached by one position."""
    first, last = scene.passes.padding, scene.passes.unseen
    held[first + 1 : last] = held[first : last - 1].copy()


def first_evicted(held: Array, scene: Scene) -> None:
    """Evict the first entry."""
    held[scene.passes.padding] = 0


def evicted_beyond(window: int) -> Spoil:
    """Evict what lies further back than ``window`` before the pass."""

    def spoil(held: Array, scene: Scene) -> None:
        held[scene.passes.padding : max(scene.passes.unseen - window, scene.passes.padding)] = 0

    return spoil


def foreign(held: Array, scene: Scene) -> None:
    """Leave at one position what another request wrote."""
    at, _ = _two(scene)
    held[at] = np.random.default_rng(scene.seed).normal(0, float(np.std(held)), held.shape[1])


def not_written(held: Array, scene: Scene) -> None:
    """Read the pass's own entries before they are written."""
    held[scene.passes.unseen :] = 0


def overwritten(held: Array, scene: Scene) -> None:
    """Write the first entry after the first pass over that pass's last one."""
    last = scene.passes.sizes[0]
    held[last - 1] = held[last]


def wrapped_around(held: Array, scene: Scene) -> None:
    """Keep a ring that is too small: older entries are those that were written over them."""
    ring = max(3, scene.passes.sizes[0] - scene.passes.padding - 2)
    sound = held.copy()
    for at in range(scene.passes.padding, scene.passes.unseen):
        held[at] = sound[at + ring * ((scene.passes.unseen - 1 - at) // ring)]


def heads_exchanged(held: Array, scene: Scene) -> None:
    """Write cached heads in another order."""
    cached = held[: scene.passes.unseen]
    heads = cached.reshape(len(cached), scene.geometry.kv_heads, -1)
    held[: scene.passes.unseen] = heads[:, ::-1].reshape(cached.shape)


def turned(by: int) -> Spoil:
    """Turn all cached keys ``by`` positions further."""

    def spoil(held: Array, scene: Scene) -> None:
        cached = held[: scene.passes.unseen]
        held[: scene.passes.unseen] = _turned(cached, np.full(len(cached), float(by)), scene)

    return spoil


def one_unturned(held: Array, scene: Scene) -> None:
    """Cache one key that was not rotated."""
    at = max(_two(scene))
    held[at] = _turned(held[at : at + 1], -scene.passes.at[at : at + 1], scene)[0]


def _turned(held: Array, by: F64, scene: Scene) -> Array:
    """Return keys [S, K*D] turned by so many positions, each row by its own."""
    frequencies, _ = rope_frequencies(scene.rope, scene.geometry.head_dim, farthest(scene.passes.at))
    angles = np.outer(by, frequencies)[:, None]
    cos, sin, half = np.cos(angles), np.sin(angles), angles.shape[-1]
    heads = held.reshape(len(held), -1, scene.geometry.head_dim)
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin, rest), axis=-1).reshape(held.shape)


def keys_for_values(scene: Scene) -> Array:
    """Read the cache of keys where values are meant."""
    held = np.array(scene.inputs["qkv_bias"])
    before = scene.passes.unseen
    held[:before, scene.columns("v")] = held[:before, scene.columns("k")]
    return scene.fed(qkv_bias=held)


def keys_of_another_row(scene: Scene) -> Array:
    """Read the keys of another row of the batch."""
    other = scene.batch[Key(scene.layer, "k_post_rope")]
    return scene.fed(k_post_rope=other[: scene.passes.tokens])


def values_of_another_row(scene: Scene) -> Array:
    """Read the values of another row of the batch."""
    held = np.array(scene.inputs["qkv_bias"])
    names = (name for name in ("qkv_bias", "qkv_matmul") if Key(scene.layer, name) in scene.batch)
    other = scene.batch[Key(scene.layer, next(names))]
    held[:, scene.columns("v")] = other[: scene.passes.tokens, scene.columns("v")]
    return scene.fed(qkv_bias=held)


def prefix_of_another_prompt(held: Array, scene: Scene) -> None:
    """Take the first keys from a cache of prefixes, where another prompt left them."""
    other = scene.batch[Key(scene.layer, "k_post_rope")]
    first = scene.passes.padding
    held[first : first + 3] = other[first : first + 3]


# --- masks -----------------------------------------------------------------------------------------------


def masked(visible: Visible) -> Formula:
    """Let each token see other keys."""

    def wrong(scene: Scene) -> Array:
        passes = scene.passes
        seen = visible(passes, scene.geometry.windows[scene.layer])[passes.unseen :]
        seen = seen | (
            ~seen.any(axis=1, keepdims=True) & np.eye(passes.tokens, dtype=np.bool_)[passes.unseen :]
        )
        return softmax(np.where(seen, scene.inputs["attn_scores"], -np.inf))

    return wrong


def _parts(passes: Passes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return each token [S, 1], where its pass starts [S, 1], and the keys [S]."""
    at = np.arange(passes.tokens)
    return at[:, None], np.repeat(passes.starts, passes.sizes)[:, None], at


def padding_seen(passes: Passes, window: int | None) -> Mask:
    """Let tokens see the padding."""
    token, _, key = _parts(passes)
    return passes.visible(window) | ((key < passes.padding) & (token >= passes.padding))


def last_of_padding_seen(passes: Passes, window: int | None) -> Mask:
    """Mask one token too few as padding."""
    token, _, key = _parts(passes)
    return np.asarray(passes.visible(window) | ((key == passes.padding - 1) & (token >= passes.padding)))


def from_first_key(passes: Passes, window: int | None) -> Mask:
    """Align the causal mask of a pass to the first key."""
    token, start, key = _parts(passes)
    return passes.met() & (key <= token - start) & ((key >= passes.padding) | (token < passes.padding))


def none_in_a_pass(passes: Passes, window: int | None) -> Mask:
    """Let the tokens of a pass see each other."""
    token, _, key = _parts(passes)
    return passes.met() & ((key >= passes.padding) | (token < passes.padding))


def own_pass_alone(passes: Passes, window: int | None) -> Mask:
    """Do not read the cache."""
    _, start, key = _parts(passes)
    return np.asarray(passes.visible(window) & (key >= start))


def without_self(passes: Passes, window: int | None) -> Mask:
    """Hide each token after the first pass from itself."""
    token, start, key = _parts(passes)
    return np.asarray(passes.visible(window) & ((key != token) | (start == 0)))


def without_last_cached(passes: Passes, window: int | None) -> Mask:
    """Take the cache to be one token shorter than it is."""
    _, start, key = _parts(passes)
    return np.asarray(passes.visible(window) & ((key != start - 1) | (start == 0)))


def without_first_cached(passes: Passes, window: int | None) -> Mask:
    """Hide the first key once it is cached."""
    _, start, key = _parts(passes)
    return np.asarray(passes.visible(window) & ((key != passes.padding) | (start == 0)))


def windowless_later(passes: Passes, window: int | None) -> Mask:
    """Forget the window after the first pass."""
    _, start, _ = _parts(passes)
    return np.where(start > 0, passes.visible(None), passes.visible(window))


def window_longer_later(passes: Passes, window: int | None) -> Mask:
    """Keep one key more than the window after the first pass."""
    _, start, _ = _parts(passes)
    return np.where(start > 0, passes.visible(None if window is None else window + 1), passes.visible(window))


# --- number formats --------------------------------------------------------------------------------------


def held_as(**names: str) -> Formula:
    """Hold keys (``scores``) or values (``mix``) in a format that is not the stated one."""
    rules = {
        Operation(operation): next(rule for rule in RULES[Operation(operation)] if rule.name == name)
        for operation, name in names.items()
    }
    return lambda scene: scene.site.holding(rules).run(scene.name, scene.inputs)


Scales = Callable[[F64], F64]
"""Returns other scales, of [S, K] for each token and head."""


def keys_scaled(scales: Scales, per: str = "token and head") -> Formula:
    """Multiply the codes of cached keys with other scales than they were divided by."""
    return lambda scene: scene.fed(k_post_rope=_rescaled(scene.inputs["k_post_rope"], scales, per, scene))


def values_scaled(scales: Scales, per: str = "token and head") -> Formula:
    """Multiply the codes of cached values with other scales than they were divided by."""

    def wrong(scene: Scene) -> Array:
        held = np.array(scene.inputs["qkv_bias"])
        columns = scene.columns("v")
        held[:, columns] = _rescaled(held[:, columns], scales, per, scene)
        return scene.fed(qkv_bias=held)

    return wrong


_SPANS: Mapping[str, tuple[int, ...]] = {"token and head": (2,), "head": (0, 2), "tensor": (0, 1, 2)}


def _rescaled(held: Array, scales: Scales, per: str, scene: Scene) -> Array:
    """Return heads times (other scale / scale): an 8-bit format keeps the very same codes of it."""
    heads = held.reshape(len(held), scene.geometry.kv_heads, -1)
    largest: Any = np.max(np.abs(heads), axis=_SPANS[per], keepdims=True).astype(np.float64)
    own = np.broadcast_to(largest, (*heads.shape[:2], 1))[..., 0]
    factor = scales(own) / own
    return np.asarray((heads * factor[..., None].astype(held.dtype)).reshape(held.shape))


def doubled(scales: F64) -> F64:
    """Take twice the scale."""
    return scales * 2


def of_next_head(scales: F64) -> F64:
    """Take the scale of the head beside."""
    return np.roll(scales, 1, axis=1)


def of_token_before(scales: F64) -> F64:
    """Take the scale of the token before."""
    return np.concatenate((scales[:1], scales[:-1]))


def of_last_token(scales: F64) -> F64:
    """Take the newest scale for all tokens, as where it is not cached."""
    return np.broadcast_to(scales[-1:], scales.shape)


def left_out(scales: F64) -> F64:
    """Leave the scale out."""
    return np.full_like(scales, 127.0)
