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


def usual(tokens: int, window: int | None) -> Iterator[tuple[str, Mask]]:
    """Yield masks of so many tokens that are not the model's, whose window is ``window``, and their names."""
    before, first = back(tokens), np.zeros((tokens, tokens), dtype=np.bool_)
    first[0, 0] = True
    inside = before < (window or tokens)
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


def of_passes(passes: Passes, window: int | None) -> Iterator[tuple[str, Mask]]:
    """Yield masks that do not know where a pass begins and ends, or which tokens are padding, by name."""
    right, keys = passes.visible(window), np.arange(passes.tokens)
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
        same = np.arange(tokens)[:, None] // chunk == np.arange(tokens)[None, :] // chunk
        yield f"chunks of {chunk} tokens that do not see each other", (before >= 0) & same
