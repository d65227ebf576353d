"""Weights that are the checkpoint's with something of low rank added: a merged LoRA (Hu et al. 2021).

What a product of such weights W + s B A is off by, x A^T B^T s, has the rank of the adapter over any number
of tokens. That shows where the run has more tokens than the rank, and it is told from what a port does wrong
in a few places: it is in the same products of every layer, with one rank, it reaches nearly all tokens and
channels, and it is not what a few input channels give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.judge import Judged, comparable, replayer_of
from apr_falsify.compare.replay import Missing, Replayer, is_mixed
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.heads import parts
from apr_falsify.operators.linear import weights_of
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]

_LEAST_RANK = 2
"""Of rank 1 is what a bias, one channel or one token does wrong."""

_LEFT = 2
"""As many directions must be left over, in which no token shows a difference."""

_LAYERS = 2
"""In as many layers it must be the same."""

_REACHED = 0.8
"""The share of values beyond their floor: an adapter leaves nothing as it was."""

_A_CHANNEL = 1e-3
"""A channel of the input that lies within the difference up to this share of its size makes it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What a product is off by.

    Attributes:
        layer: its layer.
        role: the weight: ``q``, ``down`` ...
        rank: its rank, 0 where it is none of low rank.
        size: relative L2 of it.

    """

    layer: int | None
    role: str
    rank: int
    size: float


def merged_weights(
    trace: Trace, weights: Weights | None, judged: Mapping[Key, Judged], arithmetic: str | None
) -> list[Finding]:
    """Return one finding where all products in error are so by a low-rank addition to their weights.

    Args:
        trace: the subject's trace, in the layout it was judged in.
        weights: the weights it was judged with, which are not known to be its own.
        judged: its stages.
        arithmetic: what the user states of its arithmetic.

    """
    wrong = [entry for entry in judged.values() if entry.in_error and entry.operation is Operation.PROJECTION]
    if weights is None or not wrong or any(is_mixed(entry.key, trace.geometry) for entry in wrong):
        return []
    replayer = replayer_of(trace, weights, arithmetic)
    found: list[Addition] = []
    for entry in wrong:
        found += _additions(replayer, entry)
        if any(addition.rank == 0 for addition in found):
            return []
    ranks = {addition.rank for addition in found}
    layers = sorted({addition.layer for addition in found if addition.layer is not None})
    roles = tuple(dict.fromkeys(addition.role for addition in found))
    everywhere = {(addition.layer, addition.role) for addition in found}
    if len(ranks) != 1 or len(layers) < _LAYERS or len(everywhere) != len(layers) * len(roles):
        return []
    return [_finding(found, roles, layers, wrong)]


def _finding(
    found: Sequence[Addition], roles: Sequence[str], layers: Sequence[int], wrong: Sequence[Judged]
) -> Finding:
    sizes = [addition.size for addition in found]
    return Finding(
        type=FindingType.NOT_THE_SUBJECTS_WEIGHTS,
        stages=tuple(dict.fromkeys(entry.key.stage for entry in wrong)),
        size=sorted(sizes)[len(sizes) // 2],
        explanation=(
            f"the weights of {', '.join(roles)} (layers {', '.join(map(str, layers))}) are the checkpoint's "
            f"with an addition of rank {found[0].rank}, as a merged LoRA is: it makes {min(sizes):.1e} to "
            f"{max(sizes):.1e} of what they give, and all else of these products fits"
        ),
        advice="name the merged checkpoint as --oracle: what was added is not known, and is not judged",
    )


def _additions(replayer: Replayer, entry: Judged) -> list[Addition]:
    """Return what the parts of a product that are in error are off by."""
    assert entry.fit is not None
    subject = replayer.captured(entry.key)
    found = replayer.replay(entry.key, (entry.fit.rule,))
    assert subject is not None
    if isinstance(found, Missing) or subject.ndim != 2:
        return [_none(entry.key)]
    expected, sigma = comparable(replayer.trace, entry.key, subject, found.values[0], found.sigma)
    inputs = next(iter(replayer.inputs(entry.key).values())).value
    roles = [
        role for node in replayer.span(entry.key) for role in weights_of(node) if node.operator == "linear"
    ]
    columns = parts(replayer.trace.geometry) if len(roles) > 1 else {roles[0]: slice(None)}
    additions = []
    for role, part in columns.items():
        off, own = (subject - expected)[:, part], sigma[:, part]
        if np.any(np.abs(off) > LIMIT * own):
            rank = _rank_of(off, own, inputs)
            whole = float(np.linalg.norm(expected[:, part]))
            size = float(np.linalg.norm(off)) / whole if whole else math.inf
            additions.append(Addition(layer=entry.key.layer, role=role, rank=rank, size=size))
    return additions or [_none(entry.key)]


def _none(key: Key) -> Addition:
    return Addition(layer=key.layer, role=key.stage, rank=0, size=0.0)


def _rank_of(off: F64, sigma: F64, inputs: F64) -> int:
    """Return the rank of a difference [S, n] of which ``sigma`` is the rounding; 0 where it is not low."""
    if not np.isfinite(off).all() or np.mean(np.abs(off) > LIMIT * sigma) < _REACHED:
        return 0
    rows = np.sqrt(np.mean(np.square(sigma), axis=1, keepdims=True))
    columns = np.sqrt(np.mean(np.square(sigma / rows), axis=0, keepdims=True))
    left, sizes, right = np.linalg.svd(off / rows / columns, full_matrices=False)
    rank = int(np.count_nonzero(sizes > math.sqrt(off.shape[0]) + math.sqrt(off.shape[1])))
    independent = int(np.linalg.matrix_rank(inputs / rows))
    if not _LEAST_RANK <= rank <= min(*off.shape, independent) - _LEFT:
        return 0
    kept = (left[:, :rank] * sizes[:rank]) @ right[:rank] * rows * columns
    if np.any(np.abs(off - kept) > LIMIT * sigma):
        return 0
    return 0 if _made_of_channels(left[:, :rank], inputs / rows) else rank


def _made_of_channels(space: F64, inputs: F64) -> bool:
    """Whether a channel of the inputs [S, in] lies within the space of the difference [S, rank]."""
    sizes = np.linalg.norm(inputs, axis=0)
    used = inputs[:, sizes > 0] / sizes[sizes > 0]
    beside = np.linalg.norm(used - space @ (space.T @ used), axis=0)
    return bool(np.any(beside < _A_CHANNEL))
