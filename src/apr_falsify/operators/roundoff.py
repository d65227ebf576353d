"""What one rounding costs: relative to the value, and at the smallest numbers of a format.

Relative errors hold down to a format's smallest normal number. Below it steps no longer shrink, a runtime may
flush to zero, and what such an intermediate is multiplied with afterwards multiplies that loss: silu(x) is x
times a sigmoid that is lost from x = -88 in f32, a norm multiplies a value with a weight, and a cap what was
divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry

F64 = npt.NDArray[np.float64]
Array = npt.NDArray[np.floating[Any]]

UNIT = 2.0**-24
"""The unit roundoff of f32, in which sums are done."""

TINY = 2.0**-126
"""The smallest normal f32: below it a runtime may flush to zero."""

LIMIT = 8.0
"""The floor, in units of the rounding's root mean square: the one constant.

``benchmarks/bench_floor.py`` shows how far correct runs stay below it and faults lie above.
"""

FEW = 4.0
"""Roundings of a library function (exp, sqrt, division) and of the operations around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An input of a stage.

    Attributes:
        value: its values, canonical shape.
        sigma: the rounding they carry because they were computed here, ``None`` if captured.

    """

    value: F64
    sigma: F64 | None = None

    @property
    def variance(self) -> F64 | float:
        """The square of sigma, 0 where there is none."""
        return 0.0 if self.sigma is None else squared(self.sigma)


class NoisySite(Protocol):
    """What the rounding of an operator asks of the place of a replay."""

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""

    @property
    def layer(self) -> int | None:
        """The layer."""

    @property
    def passes(self) -> Passes:
        """How the run computed its tokens."""

    @property
    def noise(self) -> list[F64]:
        """Per projection of the stage: the variance of its sums, in squared unit roundoffs."""

    @property
    def angle_errors(self) -> F64 | None:
        """The rounding of the angles of a rotation that is not the model's, [S, pairs], in unit roundoffs."""

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""


Ins = Mapping[str, Known]


def squared(x: Any) -> F64:
    """Return |x|^2."""
    found: F64 = np.square(np.abs(x))
    return found


def stored(magnitude: F64, store: float, times: float = 1.0) -> F64:
    """Return the variance of ``times`` roundings of ``magnitude`` to a format of unit roundoff ``store``."""
    return squared(magnitude) * (times * store * store / 3)


_SMALLEST_STEPS: Mapping[float, float] = {2.0**-11: 2.0**-24}
"""Unit roundoff of a format -> the step between its smallest numbers, where that matters: f16 has 5 bits
of exponent, and below 2**-14 its steps no longer shrink; f32 and bf16 reach down to 2**-126."""


def smallest_rounding(store: float) -> float:
    """Return the sigma of one rounding to the smallest numbers of a format: step / sqrt(12)."""
    return _SMALLEST_STEPS.get(store, 0.0) / math.sqrt(12)


def lost(store: float, factor: Array | float = 1.0) -> F64:
    """Return the variance of losing one of a format's smallest numbers that is then multiplied by ``factor``.

    It is rounded to one of them, or flushed to zero where it is below the smallest normal f32.
    """
    return squared(factor) * (smallest_rounding(store) ** 2 + TINY**2)
