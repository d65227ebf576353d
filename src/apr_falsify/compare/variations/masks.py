"""Which keys a token sees: the masks that ports make of a causal one, with a window or without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.model.passes import Passes

Mask = npt.NDArray[np.bool_]


def back(tokens: int) -> npt.NDArray[np.intp]:
    """Return how far each key (column) lies before each token (row): [S, S]."""
    return np.arange(tokens)[:, None] - np.arange(tokens)[None, :]


def usual(tokens: int, window: int | None, chunk: int | None = None) -> Iterator[tuple[str, Mask]]:
    """Yield masks of so many tokens, by name, that are not the model's of this window or these chunks."""
    before, first = back(tokens), np.zeros((tokens, tokens), dtype=np.bool_)
    first[0, 0] = True
    inside = before < (window or tokens)
    if chunk is not None:
        yield from _of_chunks(tokens, chunk)
        inside = inside & same_chunk(tokens, chunk)
    yield "no mask at all", np.ones((tokens, tokens), dtype=np.bool_)
    yield "a mask that lets each token see the next one", (before >= -1) & inside
    yield "a mask that hides each token from itself", ((before >= 1) & inside) | first
    yield "an inverted mask (only later tokens seen)", before <= 0
    if window is not None:
        yield "no sliding window", before >= 0
        yield "a sliding window but no causal mask", np.abs(before) < window
    yield (
        "a mask that hides the first token",
        ((before >= 0) & inside & (before < np.arange(tokens)[:, None])) | first,
    )
    yield "only the last key seen", np.broadcast_to(np.arange(tokens) == tokens - 1, before.shape)


def same_chunk(tokens: int, chunk: int, first: int = 0) -> Mask:
    """Return which tokens are of one chunk, where the first chunk is shorter by ``first`` tokens: [S, S]."""
    of = (np.arange(tokens) + first) // chunk
    return np.asarray(of[:, None] == of[None, :])


def _of_chunks(tokens: int, chunk: int) -> Iterator[tuple[str, Mask]]:
    """Yield the masks that ports make of chunks that do not see each other."""
    causal = back(tokens) >= 0
    yield "no chunks: all earlier tokens seen", causal
    yield f"a sliding window of {chunk} for chunks of as many", causal & (back(tokens) < chunk)
    for other in dict.fromkeys((chunk - 1, chunk + 1, 2 * chunk, chunk // 2)):
        if other > 0:
            yield f"chunks of {other} tokens", causal & same_chunk(tokens, other)
    for first in range(1, min(chunk, _FARTHEST)):
        yield f"chunks that begin {first} too early", causal & same_chunk(tokens, chunk, first)
    yield "chunks but no causal mask", same_chunk(tokens, chunk)


_FARTHEST = 16
"""As many places are tried at which chunks may begin instead."""


def of_passes(passes: Passes, window: int | None, chunk: int | None = None) -> Iterator[tuple[str, Mask]]:
    """Yield masks that do not know where a pass begins and ends, or which tokens are padding, by name."""
    right, keys = passes.visible(window, chunk), np.arange(passes.tokens)
    if passes.padding:
        tokens = ~(keys < passes.padding)[:, None]
        yield "a mask that lets tokens see the padding", right | ((keys < passes.padding) & tokens)
        seen = right | ((keys == passes.padding - 1) & tokens)
        yield "a mask that lets tokens see the last token of padding", seen
    if len(passes.sizes) > 1:
        start, token = np.repeat(passes.starts, passes.sizes)[:, None], keys[:, None]
        met = passes.met() & ((keys >= passes.padding) | (token < passes.padding))
        yield "a mask aligned to the first key, not to the pass's own tokens", met & (keys <= token - start)
        yield "no mask among the tokens of a pass", met
        yield "only the keys of the pass itself seen", right & (keys >= start)


def of_starts(starts: Mapping[int, int], tokens: int, window: int | None) -> Iterator[tuple[str, Mask]]:
    """Yield the masks by which some tokens see their keys from a first one on: a window, or chunks.

    Args:
        starts: token -> the first key that it sees.
        tokens: how many tokens there are.
        window: the model's window.

    """
    before = back(tokens)
    later = {row: start for row, start in starts.items() if start > 0}
    sizes = [row - start + 1 for row, start in later.items()]
    found = {round(float(np.median(sizes)))} if sizes else set()
    for size in sorted(found | ({window - 1, window + 1} if window else set())):
        if 0 < size < tokens and size != window:
            yield f"a window of {size}", (before >= 0) & (before < size)
    chunk = math.gcd(*later.values()) if later else 0
    if chunk > 1:
        says = f"chunks of {chunk} tokens that do not see each other"
        yield says, (before >= 0) & same_chunk(tokens, chunk)
