"""What a recorded array of all tokens serves besides the last token's stage that its mapping names.

``apr`` keeps of a mixture the last token's routing and output, and a port may keep those of every token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.operators.routing import as_experts, by_expert
from apr_falsify.traces.trace import StageArray

F32 = npt.NDArray[np.float32]

EVERY_TOKEN = ("moe_router", "moe_router_indices", "moe_ffn_out")
"""Stages of the last token of which the rows of all tokens serve other stages too."""


def with_every_token(
    stages: Mapping[Key, StageArray], rows: Mapping[Key, F32], geometry: Geometry
) -> dict[Key, StageArray]:
    """Return ``stages`` with those that the rows of all tokens make, where the mapping names none itself.

    Args:
        stages: what the mapping names.
        rows: of the stages in :data:`EVERY_TOKEN` that were recorded of every token: [tokens, ...].
        geometry: the model's geometry.

    """
    found = dict(stages)
    for layer in dict.fromkeys(key.layer for key in rows):
        if not geometry.is_mixture(layer):
            continue
        if (output := rows.get(Key(layer, "moe_ffn_out"))) is not None:
            found.setdefault(Key(layer, "ffn_out"), StageArray(data=output))
        if (weights := _routing(layer, rows, geometry)) is not None:
            layout = stages[Key(layer, "moe_router")].layout
            found.setdefault(Key(layer, "router_weights"), StageArray(data=weights, layout=layout))
    return found


def _routing(layer: int | None, rows: Mapping[Key, F32], geometry: Geometry) -> F32 | None:
    """Return each token's weights of the experts [tokens, experts], made of weights and indices."""
    weights, indices = (rows.get(Key(layer, name)) for name in ("moe_router", "moe_router_indices"))
    if weights is None or indices is None:
        return None
    return by_expert(as_experts(indices, geometry), weights, geometry.experts)
