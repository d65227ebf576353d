"""Channels that a quantiser has rescaled: AWQ and SmoothQuant multiply a weight's input channels by factors.

What comes before is divided by them: the norm before q, k, v, gate and up; the rows of v before o, and of up
before down. Each tensor alone differs then from the oracle's, and the model is the same. A factor is taken
for such a one only where both tensors show it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Weights

F64 = npt.NDArray[np.float64]

FED_BY: Mapping[str, str] = {
    **dict.fromkeys(("q", "k", "v"), "attn_norm"),
    **dict.fromkeys(("gate", "up"), "ffn_norm"),
}
"""Role of a matrix -> that of the norm that its input comes from."""

_WITNESS: Mapping[str, str] = {"attn_norm": "q", "ffn_norm": "gate"}
"""Role of a norm -> that of the matrix that shows its factors: the rows of v and up may be rescaled too."""

_NEXT: Mapping[str, str] = {"v": "o", "up": "down"}
_BEFORE: Mapping[str, str] = {after: before for before, after in _NEXT.items()}

_SHOWN = 0.5
"""Factors are those of a norm where the matrix's own are nearer to them than half as far as to 1."""

_UNDONE = 0.25
"""How far a row's factor times the next matrix's may be from 1: both are fitted to values of few bits."""


def factors(oracle: Weights, subject: Weights, role: str, layer: int | None) -> tuple[F64, F64]:
    """Return by what the rows and columns of the oracle's tensor are to be multiplied, [out] and [in]."""
    ours = oracle.tensor(role, layer)
    out, width = ours.shape
    columns = np.ones(width)
    if role in FED_BY:
        columns = _of_norm(oracle, subject, role, layer)
    if role in _BEFORE:
        columns = 1 / _undone(oracle, subject, _BEFORE[role], layer)[_heads(oracle, role)]
    rows = _undone(oracle, subject, role, layer) if role in _NEXT else np.ones(out)
    return rows, columns


def _of_norm(oracle: Weights, subject: Weights, role: str, layer: int | None) -> F64:
    norm = FED_BY[role]
    width = oracle.tensor(role, layer).shape[1]
    if norm not in oracle.names or norm not in subject.names:
        return np.ones(width)
    before, after = oracle.find(norm, layer), subject.find(norm, layer)
    if before is None or after is None or before.shape != after.shape:
        return np.ones(width)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = before.rows(0, width).astype(np.float64) / after.rows(0, width)
    own = _own_columns(oracle, subject, role, layer)
    shown = np.isfinite(ratio).all() and np.linalg.norm(own - ratio) < _SHOWN * np.linalg.norm(own - 1)
    return ratio if shown else np.ones(width)


def _own_columns(oracle: Weights, subject: Weights, role: str, layer: int | None) -> F64:
    """Return the factors of the input channels that a matrix shares, whatever the norm before it says."""
    witness = _WITNESS[FED_BY[role]]
    witness = role if oracle.find(witness, layer) is None else witness
    return _fitted(oracle.tensor(witness, layer), subject.tensor(witness, layer), axis=0)


def is_undone(oracle: Weights, subject: Weights, norm: str, layer: int | None) -> bool:
    """Whether the matrices after a norm show that it was divided by what they were multiplied with."""
    roles = [
        role for role, before in FED_BY.items() if before == norm and oracle.find(role, layer) is not None
    ]
    return bool(roles) and bool((_of_norm(oracle, subject, roles[0], layer) != 1).any())


def _undone(oracle: Weights, subject: Weights, role: str, layer: int | None) -> F64:
    """Return by what the rows of v or up were multiplied, 1 where the next matrix does not undo it."""
    after = _NEXT[role]
    ones = np.ones(oracle.tensor(role, layer).shape[0])
    if subject.find(after, layer) is None:
        return ones
    columns = _own_columns(oracle, subject, role, layer)
    rows = _fitted(oracle.tensor(role, layer), subject.tensor(role, layer), axis=1, columns=columns)
    heads = _heads(oracle, after)
    next_columns = _fitted(oracle.tensor(after, layer), subject.tensor(after, layer), axis=0)
    undone = np.ones(len(rows), dtype=bool)
    np.logical_and.at(undone, heads, np.abs(rows[heads] * next_columns - 1) < _UNDONE)
    return np.where(undone, rows, ones)


def _heads(weights: Weights, after: str) -> npt.NDArray[np.intp]:
    """Return which row of v or up each input channel of ``after`` comes from."""
    g = weights.geometry
    if after != "o":
        return np.arange(g.intermediate)
    heads = np.arange(g.heads) // (g.heads // g.kv_heads)
    return np.asarray(heads[:, None] * g.head_dim + np.arange(g.head_dim)).reshape(-1)


def _fitted(ours: Tensor, theirs: Tensor, *, axis: int, columns: F64 | None = None) -> F64:
    """Return the factor of each column (axis 0) or row (axis 1) by least squares, 1 where there is none."""
    along, energy = np.zeros(ours.shape[1 - axis]), np.zeros(ours.shape[1 - axis])
    for start in range(0, ours.shape[0], 256):
        stop = min(ours.shape[0], start + 256)
        right = ours.rows(start, stop).astype(np.float64) * (1.0 if columns is None else columns)
        with np.errstate(invalid="ignore", over="ignore"):
            both, own = right * theirs.rows(start, stop), np.square(right)
        at = slice(None) if axis == 0 else slice(start, stop)
        along[at] += both.sum(axis=axis)
        energy[at] += own.sum(axis=axis)
    usable = (energy > 0) & np.isfinite(along)
    found = np.where(usable, along / np.where(energy > 0, energy, 1.0), 1.0)
    return np.where(found != 0, found, 1.0)
