"""The figures of one stage compared: how far apart, in what direction, where.

With o the oracle's values, s the subject's and d = s - o, all sums in f64:

* ``rel_l2`` = |d| / |o|
* ``norm_ratio`` = |s| / |o|, which sees a wrong scale that a cosine cannot
* ``cosine`` = 1 - (|d|^2 - (|o| - |s|)^2) / (2 |o| |s|), the law of cosines. Unlike o.s / (|o| |s|) it loses
  no digits where o and s are nearly equal, and no rounding brings it above 1. It loses them where one norm
  is many times the other; there s is first brought to |o| by a power of two, which turns nothing.

Two zero vectors are equal: cosine 1, rel_l2 0, norm_ratio 1. Where only one is zero the cosine is 0; where
that is the oracle's, ``rel_l2`` and ``norm_ratio`` are infinite. Positions where either side is NaN or
infinite are left out of every figure and counted apart; where nothing is left, every figure is NaN, which
no threshold accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.sums import DIFFERENCE, EXCLUDED, ORACLE, SUBJECT, Sums, sums
from apr_falsify.errors import TraceError

F64 = npt.NDArray[np.float64]

_UNBALANCED = 64.0
"""The ratio of norms from which the cosine is taken from a second pass: 14 digits are left there."""

LEFT_OUT: tuple[int, ...] = (1, 2, 8)
"""How many of the oracle's largest channels are left out for ``cosine_without``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Figures along one axis, one per position; NaN where a position has nothing to compare.

    Attributes:
        rel_l2: |d| / |o| of each position.
        norm_ratio: |s| / |o| of each position.

    """

    rel_l2: F64
    norm_ratio: F64

    @property
    def worst(self) -> int | None:
        """The position with the greatest ``rel_l2``; ``None`` where nothing was compared."""
        return None if np.isnan(self.rel_l2).all() else int(np.nanargmax(self.rel_l2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How one stage of the subject compares with the oracle's; formulas in the module's docstring.

    Attributes:
        elements: positions of the stage, at least 1.
        compared: those where both sides are finite.
        cosine: of the angle between the two, in [-1, 1].
        rel_l2: relative L2 distance.
        norm_ratio: |s| / |o|.
        max_abs: the greatest |s - o|.
        at: its index in the canonical shape, the first of several; ``None`` where nothing was compared.
        where: the same in words.
        oracle_norm: |o|.
        subject_norm: |s|.
        difference_norm: |d|.
        nonfinite_oracle: how many of the oracle's values are NaN or infinite.
        nonfinite_subject: how many of the subject's.
        nonfinite_mismatch: positions where a side is NaN or infinite and the other not likewise
            (both NaN, or infinite with one sign).
        cosine_without: cosine without the k channels of most oracle energy, by k: one massive
            activation hides all the rest. Only where more than k channels are there.
        per: figures per ``token``, ``head``, ``channel`` (or ``key``, ``vocabulary entry``), by
            that name, as the stage has them.

    """

    elements: int
    compared: int
    cosine: float
    rel_l2: float
    norm_ratio: float
    max_abs: float
    at: tuple[int, ...] | None
    where: str
    oracle_norm: float
    subject_norm: float
    difference_norm: float
    nonfinite_oracle: int
    nonfinite_subject: int
    nonfinite_mismatch: int
    cosine_without: Mapping[int, float]
    per: Mapping[str, Profile]

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the bisection schema; ``null`` for one that is infinite or NaN."""
        figures = ("cosine", "rel_l2", "norm_ratio", "max_abs")
        values: dict[str, Any] = {name: _json_number(getattr(self, name)) for name in figures}
        return {**values, "at": None if self.at is None else list(self.at)}

    def nonfinite_json(self) -> dict[str, int]:
        """Return the counts of NaN and infinite values."""
        return {
            "oracle": self.nonfinite_oracle,
            "subject": self.nonfinite_subject,
            "mismatch": self.nonfinite_mismatch,
        }


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_arrays(oracle: npt.NDArray[Any], subject: npt.NDArray[Any], axes: Axes) -> Metrics:
    """Compare two arrays of one shape in one pass; in two where one norm is over 64 times the other.

    Args:
        oracle: the reference's values, any real format, with one axis per name in ``axes``.
        subject: the same of the subject.
        axes: what the axes mean.

    Peak memory beyond the arrays and the result is a few MB; an array that is not C-contiguous is copied.

    Raises:
        TraceError: different shapes, axes that do not fit, or no values: nothing compared is no agreement.

    """
    _check(oracle.shape, subject.shape, axes)
    columns = oracle.shape[-1]
    sides = oracle.reshape(-1, columns), subject.reshape(-1, columns)
    found = sums(*sides)
    at = _unravelled(found, oracle.shape)
    compared = oracle.size - int(found.rows[EXCLUDED].sum())
    energies = found.rows.sum(axis=1)
    rel_l2, norm_ratio = _figures(energies, oracle.size)
    o, s, d = (math.sqrt(energies[row]) / found.scale for row in (ORACLE, SUBJECT, DIFFERENCE))
    stretch = _stretch(energies)
    balanced = found if stretch == 1.0 else sums(*sides, stretch=stretch)
    return Metrics(
        elements=oracle.size,
        compared=compared,
        cosine=_cosine(balanced.rows.sum(axis=1)) if compared else math.nan,
        rel_l2=float(rel_l2),
        norm_ratio=float(norm_ratio),
        max_abs=math.nan if at is None else abs(float(subject[at]) - float(oracle[at])),
        at=at,
        where="" if at is None else axes.words(at),
        oracle_norm=o,
        subject_norm=s,
        difference_norm=d,
        nonfinite_oracle=found.oracle_nonfinite,
        nonfinite_subject=found.subject_nonfinite,
        nonfinite_mismatch=found.mismatched,
        cosine_without=_cosines_without(balanced),
        per=_profiles(found, oracle.shape, axes),
    )


def _check(oracle: tuple[int, ...], subject: tuple[int, ...], axes: Axes) -> None:
    if oracle != subject:
        raise TraceError(
            f"the subject's shape is {list(subject)}",
            expected=f"{list(oracle)}, the oracle's",
            remedy="check that layouts and token ids of both sides are those of the runs",
        )
    if len(oracle) != len(axes.names):
        raise TraceError(f"the shape is {list(oracle)}", expected=f"axes {', '.join(axes.names)}")
    if axes.head_dim is not None and oracle[-1] != axes.head_dim * len(axes.heads):
        raise TraceError(
            f"the last axis has {oracle[-1]} values", expected=f"{len(axes.heads)} heads of {axes.head_dim}"
        )
    if 0 in oracle:
        raise TraceError(
            "there is nothing to compare", expected="at least one value", remedy="capture it again"
        )


def _unravelled(found: Sums, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if found.best < 0:
        return None
    row, column = found.best_at
    return (*(int(index) for index in np.unravel_index(row, shape[:-1])), column)


def _figures(energies: F64, elements: int) -> tuple[F64, F64]:
    """Return rel_l2 and norm_ratio from sums [4, ...], each over ``elements`` positions."""
    o, s, d = energies[ORACLE], energies[SUBJECT], energies[DIFFERENCE]
    with np.errstate(divide="ignore", invalid="ignore"):
        rel_l2 = np.where(d == 0, 0.0, np.sqrt(d / o))
        norm_ratio = np.where((o == 0) & (s == 0), 1.0, np.sqrt(s / o))
    nothing = energies[EXCLUDED] == elements
    return np.where(nothing, np.nan, rel_l2), np.where(nothing, np.nan, norm_ratio)


def _stretch(energies: F64) -> float:
    """Return the power of two that brings |s| near |o|, 1 where it is near or either is zero."""
    o, s = math.sqrt(energies[ORACLE]), math.sqrt(energies[SUBJECT])
    if o == 0 or s == 0 or 1 / _UNBALANCED < s / o < _UNBALANCED:
        return 1.0
    return 2.0 ** round(math.log2(o) - math.log2(s))


def _cosine(energies: F64) -> float:
    oo, ss, dd = (float(energies[row]) for row in (ORACLE, SUBJECT, DIFFERENCE))
    if oo == 0 or ss == 0:
        return 1.0 if oo == ss else 0.0
    o, s = math.sqrt(oo), math.sqrt(ss)
    gap = (oo - ss) / (o + s)
    return 1.0 - min(2.0, max(0.0, dd - gap * gap) / (2 * o * s))


def _cosines_without(found: Sums) -> dict[int, float]:
    """Sum the other columns anew: taking the largest from the total would leave its rounding error."""
    order = np.argsort(-found.columns[ORACLE], kind="stable")
    compared = found.columns[EXCLUDED] < found.rows.shape[1]
    cosines = {}
    for k in LEFT_OUT:
        rest = np.sort(order[k:])
        if compared[rest].any():
            cosines[k] = _cosine(found.columns[:, rest].sum(axis=1))
    return cosines


def _profiles(found: Sums, shape: tuple[int, ...], axes: Axes) -> dict[str, Profile]:
    size = math.prod(shape)
    by_row = found.rows.reshape(4, *shape[:-1])
    leading = range(1, len(shape))
    tables = {
        axes.names[axis - 1]: by_row.sum(axis=tuple(other for other in leading if other != axis))
        for axis in leading
    }
    if axes.head_dim is not None:
        tables["head"] = found.columns.reshape(4, -1, axes.head_dim).sum(axis=2)
    tables[axes.names[-1]] = found.columns
    return {name: _profile(table, size // table.shape[1]) for name, table in tables.items()}


def _profile(energies: F64, elements: int) -> Profile:
    rel_l2, norm_ratio = _figures(energies, elements)
    return Profile(rel_l2=rel_l2, norm_ratio=norm_ratio)
