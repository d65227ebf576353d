"""What tests of the floor share: a place without weights, and a stage's variance in unit roundoffs of f32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import rounding
from apr_falsify.compare.site import ReplaySite
from apr_falsify.formats.weights import Weights
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.roundoff import Known, lost
from tests.unit.helpers import small_geometry

F64 = npt.NDArray[np.float64]
U, F16, BF16 = 2.0**-24, 2.0**-11, 2.0**-8
TINY = 2.0**-126
LLAMA = small_geometry()  # 4 heads and 2 kv heads of 4 channels, hidden 16
GEMMA: Mapping[str, Any] = {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 4,
    "head_dim": 4,
}
SMALL = {store: lost(store) / U**2 for store in (U, F16, BF16)}
"""What a value that is rounded to a format's smallest numbers adds."""


def site(
    geometry: Geometry, layer: int | None = 0, weights: Weights | None = None, **found: Any
) -> ReplaySite:
    return ReplaySite(weights=weights, geometry=geometry, layer=layer, tokens=(1, 2, 3), **found)


def variance(name: str, inputs: Mapping[str, Known], y: Any, place: ReplaySite, store: float = U) -> F64:
    """Return the variance of a stage, in squared unit roundoffs of f32."""
    return np.square(rounding(name, inputs, np.asarray(y, np.float64), place, store) / U)


def known(values: Any, sigma: Any = None) -> Known:
    return Known(
        value=np.asarray(values, np.float64), sigma=None if sigma is None else np.asarray(sigma, np.float64)
    )


def close(found: F64, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9)
