"""Keys and values that a cache hands out wrongly: one that is another's, or is turned for another place.

The rows that read a cached key show which key it was: a score is q.k, and q is known. Values show in the mix
in the same way: a row of attention is the sum of weight times value, and the weights are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.variations.attend import is_apart
from apr_falsify.compare.variations.case import F64, Case, Guess, Variation
from apr_falsify.model.stages import SCORES, Key
from apr_falsify.operators.heads import by_head, flat, for_queries, values_of
from apr_falsify.operators.rotation import farthest, rope_frequencies

_MOST_TOKENS = 512
"""In longer runs a cached key is not looked for: every one is compared with all others."""

_MOST_KEYS = 64
"""If more are wrong, it is not the cache that is."""

_LISTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What some rows read of the cache.

    Attributes:
        rows: the rows that read something wrong, within the recorded ones.
        keys: the cached positions at which they do.
        first: the token of the first of these rows.

    """

    rows: npt.NDArray[np.intp]
    keys: npt.NDArray[np.intp]
    first: int


def rows_of_a_batch(case: Case) -> Iterator[Guess]:
    """Yield scores with the keys of another row of the batch, and the mix with its values."""
    name = "k_post_rope" if case.name != "attention" else "qkv_bias"
    stored = [name] if case.name != "attention" else ["qkv_bias", "qkv_matmul"]
    if name not in case.known:
        return
    what = "keys" if case.name != "attention" else "values"
    for row, stages in case.replayer.trace.batch.items():
        values = next((stages[key] for part in stored if (key := Key(case.layer, part)) in stages), None)
        if values is not None and values.shape == case.inputs[name].shape:
            says = f"the {what} of row {row} of the batch"
            yield case.evaluated(says, {name: values.astype(np.float64)}, instead="a row reads its own")


def other_keys(case: Case) -> Iterator[Guess]:
    """Yield scores in which some cached keys are others: of another position, turned otherwise, or none."""
    read = _read_wrongly(case)
    if read is None:
        return
    source = np.arange(case.expected.shape[-1])
    wrong: npt.NDArray[np.bool_] = np.asarray(np.any(case.exceeds, axis=0))
    for key in read.keys:
        far = _column(case.subject, read, key)[..., None] - case.expected[:, read.rows]
        source[key] = int(np.argmin(np.sum(np.square(far) * wrong[read.rows, key][:, None], axis=(0, 1))))
    for entries in (_from_first_on(read, case), wrong):
        if np.any(source[read.keys] != read.keys):
            values = np.where(entries, case.expected[..., source], case.expected)
            yield Guess(says=_words("key", read, source), values=values, instead=_INSTEAD)
        empty = np.where(entries, 0.0, case.expected)
        says = f"no cached key at {_positions(read.keys)} (evicted, or never written)"
        yield Guess(says=f"from token {read.first} on {says}", values=empty, instead=_INSTEAD)
    yield from _turned_keys(case, read)


_INSTEAD = "each row reads the keys and values that earlier passes made"


def _from_first_on(read: _Read, case: Case) -> npt.NDArray[np.bool_]:
    """Return which entries read the keys that are wrong, from the first row that does so on: [rows, S]."""
    found = np.zeros(case.expected.shape[1:], dtype=np.bool_)
    found[read.rows[0] :, read.keys] = True
    return found


def _column(scores: F64, read: _Read, key: int) -> F64:
    return scores[:, read.rows, key]


def _read_wrongly(case: Case) -> _Read | None:
    """Return what was read wrongly, ``None`` where that is not for a few cached keys to explain."""
    exceeds = case.exceeds
    if exceeds.ndim != 3 or exceeds.shape[-1] > _MOST_TOKENS or exceeds.shape != case.expected.shape:
        return None
    rows, keys = (np.flatnonzero(np.any(exceeds, axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(keys) or len(keys) > _MOST_KEYS:
        return None
    return _Read(rows=rows, keys=keys, first=int(rows[0]) + case.replayer.trace.passes.unseen)


def _turned_keys(case: Case, read: _Read) -> Iterator[Guess]:
    """Yield scores whose wrong keys are their own, turned for other positions than theirs."""
    known = case.known.get("k_post_rope")
    if known is None or case.rope.kind == "none" or case.geometry.attn_softcap is not None:
        return
    at = case.replayer.trace.passes.at
    places = np.arange(farthest(at) + 8, dtype=np.float64)
    frequencies, _ = rope_frequencies(case.rope, case.geometry.head_dim, farthest(at))
    start = case.geometry.rotary_start(case.layer)
    queries = by_head(case.inputs["q_post_rope"], case.geometry.head_dim)[:, read.rows]
    values, found = case.expected.copy(), {}
    for key in read.keys:
        angles = (places - at[key])[:, None] * frequencies
        turned = _turned(known.value[key], angles, case.geometry.head_dim, start)
        shared = for_queries(by_head(turned, case.geometry.head_dim), case.geometry)
        scores = queries @ shared.swapaxes(-1, -2) * case.geometry.attn_scale_at(case.layer)
        subject = _column(case.subject, read, key)[..., None]
        best = int(np.argmin(np.sum(np.square(scores - subject), axis=(0, 1))))
        values[:, read.rows, key] = scores[..., best]
        found[int(key)] = best
    listed = ", ".join(f"{key} at {place}" for key, place in list(found.items())[:_LISTED])
    says = f"from token {read.first} on cached keys turned for other positions: that of {listed}"
    yield Guess(says=says, values=values, instead="a cached key keeps the position it was written at")


def _turned(key: F64, angles: F64, head_dim: int, start: int) -> F64:
    """Return one key [K*D] turned by each row of ``angles`` [P, pairs], from ``start`` on: [P, K*D]."""
    heads, half = key.reshape(1, -1, head_dim), angles.shape[1]
    before, first, second, after = np.split(heads, [start, start + half, start + 2 * half], axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    still = [np.broadcast_to(rest, (len(angles), *rest.shape[1:])) for rest in (before, after)]
    turned = (still[0], first * cos - second * sin, second * cos + first * sin, still[1])
    return np.concatenate(turned, axis=-1).reshape(len(angles), -1)


def other_values(case: Case) -> Iterator[Guess]:
    """Yield the mix in which one cached value is another's or none, or two are exchanged."""
    exceeds, weights = case.exceeds, case.inputs["attn_softmax"]
    rows = np.flatnonzero(exceeds.reshape(len(exceeds), -1).any(axis=1))
    keys = weights.shape[-1]
    if not len(rows) or keys > _MOST_TOKENS or weights.shape[1] != len(exceeds):
        return
    geometry = case.geometry
    v = values_of(case.inputs["qkv_bias"], geometry)
    values = for_queries(by_head(v, geometry.value_dim), geometry)
    left = by_head(case.subject - case.shaped(case.expected), geometry.value_dim)[:, rows]
    w = weights[:, rows]
    along = np.einsum("htj,htd,hid->ji", w, np.nan_to_num(left), values)  # <what is left, w_j v_i>
    first = int(rows[0]) + case.replayer.trace.passes.unseen
    read = _Read(rows=rows, keys=np.arange(keys), first=first)
    for order in _orders(along, w, values):
        source = np.asarray(order)
        moved = np.concatenate((v, np.zeros((1, v.shape[1]))))[source]
        mixed = case.evaluated("", {"qkv_bias": moved})
        both, spread = case.expected.copy(), case.sigma.copy()
        both[rows[0] :] = mixed.values[rows[0] :]
        if mixed.sigma is not None:
            spread[rows[0] :] = mixed.sigma[rows[0] :]
        changed = replace(read, keys=np.flatnonzero(source != np.arange(keys)))
        yield Guess(says=_words("value", changed, source), values=both, sigma=spread, instead=_INSTEAD)
    yield from _foreign_value(case, read, w, left)


def _foreign_value(case: Case, read: _Read, w: F64, left: F64) -> Iterator[Guess]:
    """Yield the mix with one cached value that is none of this run's, by least squares over the rows."""
    heads, rows, keys = w.shape
    groups = heads // case.geometry.kv_heads
    if rows * groups < _ENOUGH:
        return
    shared = w.reshape(-1, groups * rows, keys), left.reshape(-1, groups * rows, left.shape[-1])
    energy = np.sum(np.square(shared[0]), axis=1)  # [K, S]
    along = np.einsum("krj,krd->kjd", *shared)
    gained = np.sum(np.square(along), axis=-1) / np.where(energy > 0, energy, np.inf)
    key = int(np.argmax(np.sum(gained, axis=0)))
    offset = along[:, key] / np.where(energy[:, key], energy[:, key], 1.0)[:, None]
    added = w[..., key, None] * np.repeat(offset, groups, axis=0)[:, None]
    values = case.expected.copy()
    values[read.rows] += flat(added)
    says = f"from token {read.first} on a cached value at position {key} that is none of this run's"
    yield Guess(says=says, values=values, instead="another row's, or left from another run")


_ENOUGH = 4
"""So many sums must agree on a value that is solved for."""


def _orders(along: F64, w: F64, values: F64) -> Iterator[npt.NDArray[np.intp]]:
    """Yield for each cached position whose value it has (one more: none), the likeliest of each kind."""
    keys = len(along)
    own = np.arange(keys)
    size = np.einsum("htj->hj", np.square(w))
    apart = (
        np.sum(np.square(values), axis=-1)[:, :, None]
        + np.sum(np.square(values), axis=-1)[:, None, :]
        - 2 * values @ values.swapaxes(-1, -2)
    )  # [H, j, i]
    gained = along - np.diag(along)[:, None]
    taken = np.einsum("hj,hji->ji", size, apart) - 2 * gained
    j, i = np.unravel_index(int(np.argmin(taken)), taken.shape)
    yield np.where(own == j, i, own)
    differing = size[:, :, None] + size[:, None, :] - 2 * np.einsum("htj,hti->hji", w, w)
    exchanged = np.einsum("hji,hji->ji", differing, apart) - 2 * (gained + gained.T)
    j, i = np.unravel_index(int(np.argmin(exchanged)), exchanged.shape)
    swapped = own.copy()
    swapped[[j, i]] = i, j
    yield swapped
    lost = np.einsum("hj,hj->j", size, np.sum(np.square(values), axis=-1)) + 2 * np.diag(along)
    yield np.where(own == int(np.argmin(lost)), keys, own)
    yield np.maximum(own - 1, 0)
    yield np.minimum(own + 1, keys - 1)


def _words(what: str, read: _Read, source: npt.NDArray[np.intp]) -> str:
    """Say which cached keys or values are other ones."""
    keys = [int(key) for key in read.keys if source[key] != key]
    moved = {key: int(source[key]) for key in keys}
    start = f"from token {read.first} on "
    shifts = {moved[key] - key for key in keys}
    if len(keys) == 2 and moved[keys[0]] == keys[1] and moved[keys[1]] == keys[0]:
        return f"{start}the cached {what}s of positions {keys[0]} and {keys[1]} exchanged"
    if len(keys) > 2 and len(shifts) == 1:
        by = shifts.pop()
        return (
            f"{start}cached {what}s shifted by {abs(by)}: positions {keys[0]} to {keys[-1]} with the "
            f"{what}s of {abs(by)} {'before' if by < 0 else 'after'} them"
        )
    listed = [
        f"position {key} with {f'no {what}' if moved[key] == len(source) else f'that of {moved[key]}'}"
        for key in keys[:_LISTED]
    ]
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f"{start}another cached {what}: {', '.join(listed)}{more}"


def _positions(keys: npt.NDArray[np.intp]) -> str:
    listed = ", ".join(map(str, keys[:_LISTED]))
    return f"position{'s' if len(keys) > 1 else ''} {listed}{' ...' if len(keys) > _LISTED else ''}"


OF_A_BATCH = (Variation(name="other-row-of-a-batch", stages=(*SCORES, "attention"), guesses=rows_of_a_batch),)
OF_SOME_KEYS = (
    Variation(name="stale-cache", stages=SCORES, guesses=other_keys),
    Variation(name="stale-cache", stages=("attention",), where=is_apart, guesses=other_values),
)
"""Rows of the table of causes."""
