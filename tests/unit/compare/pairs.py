"""Pairs of random arrays that differ by a known noise, and what they are compared along."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import Axes
from apr_falsify.model.geometry import geometry_of_hf_dir
from tests.unit.helpers import TINY

Array = npt.NDArray[np.floating]
TOKEN_CHANNEL = Axes(names=("token", "channel"))
GEOMETRY = geometry_of_hf_dir(TINY)
"""Of the checkpoint that the package carries."""


def random_pair(*shape: int, noise: float = 1e-3, seed: int = 0) -> tuple[Array, Array]:
    """Return f32 values of standard deviation 1, and the same with ``noise`` added."""
    rng = np.random.default_rng(seed)
    oracle = rng.standard_normal(shape, dtype=np.float32)
    return oracle, oracle + np.float32(noise) * rng.standard_normal(shape, dtype=np.float32)
