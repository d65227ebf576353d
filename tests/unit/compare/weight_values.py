"""Kinds of values that weights have, for tests and benchmarks of what quantising costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Draw = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]

VALUES: Mapping[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
    "t, 2 degrees": lambda rng, shape: rng.standard_t(2, shape),
    "with a mean": lambda rng, shape: rng.normal(3, 1, shape),
    "outlier channels": lambda rng, shape: (
        rng.normal(0, 1, shape) * np.where(np.arange(shape[1]) % 97, 1, 50)
    ),
    "loud and quiet rows": lambda rng, shape: (
        rng.normal(0, 1, shape) * np.exp(rng.normal(0, 2, (shape[0], 1)))
    ),
    "loud and quiet blocks": lambda rng, shape: (
        rng.normal(0, 1, shape)
        * np.repeat(np.exp(rng.normal(0, 1.5, (shape[0], shape[1] // 32))), 32, axis=1)
    ),
    "mostly zeros": lambda rng, shape: rng.normal(0, 1, shape) * (rng.random(shape) < 0.1),
}
