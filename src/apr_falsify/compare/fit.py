"""How well one arithmetic explains a captured stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.excess import EXPLAINED_SHARE, excess_of
from apr_falsify.numerics.operand_rules import Rule
from apr_falsify.operators.roundoff import LIMIT

F64 = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well one arithmetic explains a stage.

    Attributes:
        rule: the arithmetic.
        residual: relative L2 of what is left.
        floor: relative L2 of the largest residual that is no accusation.
        excess: the largest ratio of what is left to what is allowed, over elements, channels and
            tokens; above 1 is an accusation.
        share: the share of elements within the limit.
        edges: how many input values on the edge between two steps fell to the other side than here.

    """

    rule: Rule
    residual: float
    floor: float
    excess: float
    share: float
    edges: int = 0

    @property
    def explains(self) -> bool:
        """Whether the arithmetic is the runtime's own, whatever else may be wrong with the stage."""
        return self.share >= EXPLAINED_SHARE


def fit_of(rule: Rule, subject: Stored, expected: F64, sigma: F64, unit: float) -> Fit:
    """Return how well ``expected``, rounded as ``sigma`` says, explains ``subject``.

    ``unit`` is the unit roundoff of the format in which the stage is kept.
    """
    finite = np.isfinite(subject) & np.isfinite(expected)
    same = finite | (np.isnan(subject) & np.isnan(expected)) | (subject == expected)
    with np.errstate(invalid="ignore"):
        ratio = np.asarray(subject - expected)
    ratio[~finite] = 0.0
    norm, left, allowed = (_norm(values, finite) for values in (expected, ratio, sigma))
    allowed *= LIMIT
    ratio /= sigma
    np.abs(ratio, out=ratio)
    ratio[~same] = np.inf
    return Fit(
        rule=rule,
        residual=left / norm if norm else (0.0 if left == 0 else math.inf),
        floor=allowed / norm if norm else 0.0,
        excess=excess_of(ratio, expected, unit),
        share=float(np.mean(ratio <= LIMIT)),
    )


def _norm(values: F64, finite: npt.NDArray[np.bool_]) -> float:
    flat = (values if finite.all() else np.where(finite, values, 0.0)).reshape(-1)
    return math.sqrt(float(np.dot(flat, flat)))
