"""Which keys a layer lets its tokens see: all before them, a window of those, or those of their chunk."""

from __future__ import annotations

from apr_falsify.model.passes import Mask, Passes
from apr_falsify.model.shape import Geometry


def seen_keys(geometry: Geometry, layer: int | None, passes: Passes) -> Mask:
    """Return which key (column) each token (row) of ``layer`` may see: [S, S]."""
    assert layer is not None, "layers may differ in it, and the whole model has none"
    return passes.visible(geometry.windows[layer], geometry.chunk_at(layer))
