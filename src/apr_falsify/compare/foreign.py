"""Whether a run was replayed with weights that are not its own: nearly every product then fails."""

from __future__ import annotations

from collections.abc import Mapping

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.judge import Judged, replayer_of
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.traces.trace import Trace

FOREIGN_SHARE = 0.9
"""Share of all projections in error from which the weights, not the stages, are suspected."""

FOREIGN_AT_LEAST = 4
"""How many projections must have been judged before that is concluded."""


def _failing(judged: Mapping[Key, Judged]) -> tuple[list[Judged], int]:
    """Return the projections in error where nearly all are, else none; and how many there are."""
    projections = [
        entry for entry in judged.values() if entry.kind[0] is Operation.PROJECTION and entry.fit is not None
    ]
    failing = [entry for entry in projections if entry.in_error]
    few = len(projections) < FOREIGN_AT_LEAST or len(failing) < FOREIGN_SHARE * len(projections)
    if few or len({entry.key.stage for entry in failing}) < FOREIGN_AT_LEAST:
        return [], len(projections)
    return failing, len(projections)


def misread_everywhere(
    trace: Trace,
    weights: Weights | None,
    judged: Mapping[Key, Judged],
    arithmetic: str | None,
    attempts: Attempts,
) -> bool:
    """Whether nearly all projections fail since the subject misread quantised weights, which are its own."""
    failing, _ = _failing(judged)
    if not failing:
        return False
    from apr_falsify.compare.search import Search  # all causes: a run without a source needs none

    return Search(replayer_of(trace, weights, arithmetic), attempts).all_misread(failing)


def foreign_weights(judged: Mapping[Key, Judged], own_weights: bool, dtype: str) -> list[Finding]:
    """Return one finding where nearly every projection fails: the weights are not its own.

    Or it went on with other values than those that were saved; ``dtype`` is the format that it declares.
    """
    failing, count = _failing(judged)
    if own_weights or not failing:
        return []
    sizes = sorted(entry.fit.residual for entry in failing if entry.fit is not None)
    return [
        Finding(
            type=FindingType.NOT_THE_SUBJECTS_WEIGHTS,
            stages=tuple(dict.fromkeys(entry.key.stage for entry in failing)),
            size=sizes[len(sizes) // 2],
            explanation=(
                f"{len(failing)} of {count} projections differ from their replay, by "
                f"{sizes[0]:.1e} to {sizes[-1]:.1e}: the weights it was replayed with are not those it ran"
            ),
            advice="name the subject's own file, e.g. its GGUF, as --oracle" + _ROUNDED_LATER.get(dtype, ""),
        )
    ]


_KEPT_IN_FULL = ("attn_norm", "ffn_norm", "final_norm", "qkv_bias")
"""Stages that are no products and use weights, which quantised files keep as they were."""

_FEW = 0.5
"""Share of the stages of one sort in error from which what they share is suspected, not they."""


def wrong_without_weights(judged: Mapping[Key, Judged]) -> dict[Key, Judged]:
    """Return the stages in error of which other weights are no excuse: few of their sort are.

    They use no weights, or norms and biases. The embedding is a row of a table that files quantise.
    """
    simple = {
        key: entry
        for key, entry in judged.items()
        if entry.fit is not None
        and not entry.composed
        and entry.kind[0] is not Operation.PROJECTION
        and key.stage != "embedding"
    }
    found: dict[Key, Judged] = {}
    for kept in (True, False):
        sort = {key: entry for key, entry in simple.items() if (key.stage in _KEPT_IN_FULL) is kept}
        wrong = {key: entry for key, entry in sort.items() if entry.in_error}
        if len(wrong) < _FEW * len(sort):
            found |= wrong
    return found


_ROUNDED_LATER = {
    name: f"; if it computes in f32 and is only saved in {name}, let its mapping say dtype: f32"
    for name in ("f16", "bf16")
}
"""A format in which a run declares to store its stages -> what else may be the matter."""
