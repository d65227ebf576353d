"""From judged stages to findings: sources, arithmetics, a suspect reference, what could not be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.bisection import Finding, FindingType, Row, Status, Verdict, compared
from apr_falsify.compare.fit import Fit
from apr_falsify.compare.invariants import invariants
from apr_falsify.compare.judge import Judged, replayer_of
from apr_falsify.compare.last_token import HELD_IN
from apr_falsify.compare.search import Search
from apr_falsify.compare.structure import consumers
from apr_falsify.formats.weights import Weights
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.model.wiring import inputs_of
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.traces.trace import Trace

NO_DIVERGENCE = 1e-5
"""Accumulated relative L2 up to which a stage that cannot be replayed is taken to agree.

Two correct f32 runs of 30 layers stay within 2e-6 of each other, in every stage.
"""

CLEAR_DIVERGENCE = 2e-2
"""Accumulated relative L2 from which an elementwise stage is wrong if its inputs agree.

Several times what keeping it in bf16, the coarsest format of the table, can bring (2**-8).
"""

HEALED = 0.01
"""A consumer with less than this share of the introduced error does not show it."""


def place(key: Key) -> str:
    """Return a stage in words."""
    layer, name = key
    return name if layer is None else f"layer {layer} {name}"


def source_findings(
    trace: Trace,
    weights: Weights | None,
    judged: Mapping[Key, Judged],
    rows: Sequence[Row],
    *,
    own_weights: bool,
    arithmetic: str | None = None,
    attempts: Attempts = LOUD,
) -> list[Finding]:
    """Return a finding for each stage that is not what its own inputs make it.

    Args:
        trace: the subject's trace, in the layout it was judged in.
        weights: the weights it was judged with.
        judged: its stages.
        rows: the rows of the comparison, for what later stages show of the error.
        own_weights: whether ``weights`` are known to be the subject's own.
        arithmetic: what the user states of the subject's arithmetic.
        attempts: notes the explanations that break down.

    """
    sources = [entry for entry in judged.values() if entry.in_error]
    if not sources:
        return []

    accumulated = {Key(row.layer, row.stage): row for row in rows}
    fed = consumers(accumulated, trace.geometry)
    search = Search(replayer_of(trace, weights, arithmetic), attempts)
    return [_source(entry, search.explained(entry), accumulated, fed, own_weights) for entry in sources]


def _source(
    entry: Judged,
    explained: tuple[list[str], tuple[str, str] | None],
    rows: Mapping[Key, Row],
    fed: Mapping[Key, Sequence[Key]],
    own_weights: bool,
) -> Finding:
    fit = entry.fit
    assert fit is not None
    sentences = [f"{place(entry.key)} is not what its inputs make it: residual {fit.residual:.1e}"]
    sentences[0] += f", floor {fit.floor:.1e}{_worst(fit)}"
    reasons, cause = explained
    sentences += reasons
    if entry.composed:
        sentences.append(
            f"{', '.join(entry.composed)} was not captured, so the source cannot be narrowed further"
        )
    sentences += _visibility(entry, rows, fed)
    if entry.weight_type and not own_weights:
        sentences.append("the subject's own weights were not read: its weights may be wrong instead")
    return Finding(
        type=FindingType.SOURCE,
        layer=entry.key.layer,
        stages=(*entry.composed, entry.key.stage),
        size=fit.residual,
        explanation="; ".join(sentences),
        advice=f"look at the code and the weights of {place(entry.key)}",
        cause=cause,
    )


def _worst(fit: Fit) -> str:
    """Say by how much the worst place exceeds its floor where the whole stage does not."""
    return f", {fit.excess:.2g} x its floor at the worst place" if fit.residual < fit.floor else ""


def _visibility(entry: Judged, rows: Mapping[Key, Row], fed: Mapping[Key, Sequence[Key]]) -> list[str]:
    """Say where the error does not show further down, as of a rotation that is off by one position."""
    introduced = entry.introduced
    after = [rows[key] for key in fed.get(entry.key, ()) if key in rows and rows[key].accumulated is not None]
    if introduced is None or not after:
        return []
    shown = [row for row in after if row.accumulated and row.accumulated.rel_l2 > HEALED * introduced.rel_l2]
    if shown:
        return []
    return [f"{', '.join(row.stage for row in after)} does not show it"]


def differing_on_equal_inputs(
    rows: Sequence[Row], judged: Mapping[Key, Judged], geometry: Geometry
) -> dict[Key, tuple[Row, float]]:
    """Return the stages that must be in error although they could not be replayed for want of weights.

    An elementwise stage whose inputs agree with the oracle's cannot differ from the oracle's by itself,
    in any arithmetic. A projection can: 8-bit activations alone make a percent of difference.

    Returns:
        Stage -> its row, and the largest accumulated difference of its inputs.

    """
    known = {Key(row.layer, row.stage): row for row in rows if row.accumulated is not None}
    found = {}
    for key, row in known.items():
        entry = judged.get(key)
        if entry is None or entry.missing is None or entry.kind[0] is not Operation.ELEMENTWISE:
            continue
        sources = list(inputs_of(key.stage, geometry, key.layer).values())
        if not sources or any(source not in known for source in sources):
            continue
        inputs = max(_accumulated(known[source]) for source in sources)
        if inputs <= NO_DIVERGENCE and _accumulated(row) > CLEAR_DIVERGENCE:
            found[key] = row, inputs
    return found


def _accumulated(row: Row) -> float:
    return math.inf if row.accumulated is None else row.accumulated.rel_l2


def comparative_findings(found: Mapping[Key, tuple[Row, float]]) -> list[Finding]:
    """Return a finding for each stage that differs from the oracle's while its inputs do not."""
    return [
        Finding(
            type=FindingType.SOURCE,
            layer=key.layer,
            stages=(key.stage,),
            size=_accumulated(row),
            explanation=(
                f"{place(key)} differs from the oracle's by {_accumulated(row):.1e} while what it is "
                f"computed from agrees to {inputs:.1e}"
            ),
            advice="name the weights for an explanation: --oracle MODEL (bisect), --weights MODEL (compare)",
        )
        for key, (row, inputs) in found.items()
    ]


def invariant_findings(
    trace: Trace, judged: Mapping[Key, Judged], attempts: Attempts = LOUD
) -> list[Finding]:
    """Return a finding for each unreplayable stage that breaks what holds without a reference."""
    broken = {
        Key(violation.layer, violation.stage): violation
        for violation in invariants(trace, attempts)
        if (violation.layer, violation.stage) in judged
    }
    return [
        Finding(
            type=FindingType.SOURCE,
            layer=key.layer,
            stages=(key.stage,),
            size=violation.size,
            explanation=f"{place(key)} is wrong whatever its inputs were: {violation.sentence}",
            advice=f"look at the code of {place(key)}",
        )
        for key, violation in broken.items()
        if judged[key].fit is None
    ]


def reference_findings(judged: Mapping[Key, Judged]) -> list[Finding]:
    """Return a finding where the oracle's own trace fails its replay."""
    failing = [entry for entry in judged.values() if entry.in_error]
    if not failing:
        return []
    first = failing[0]
    assert first.fit is not None
    return [
        Finding(
            type=FindingType.REFERENCE,
            layer=first.key.layer,
            stages=(first.key.stage,),
            size=first.fit.residual,
            explanation=(
                f"the oracle's own trace fails its replay in {len(failing)} stages, first in "
                f"{place(first.key)}: residual {first.fit.residual:.1e}, floor {first.fit.floor:.1e}"
                f"{_worst(first.fit)}"
            ),
            advice="capture the oracle again, in f32; nothing is concluded about the subject",
        )
    ]


def arithmetic_findings(judged: Mapping[Key, Judged]) -> list[Finding]:
    """Return a finding for each arithmetic that is not the expected one, over all layers that show it."""
    groups: dict[tuple[str, str, str, bool], list[Judged]] = {}
    for entry in judged.values():
        fit = entry.fit
        if fit is None or entry.in_error or (fit.rule is entry.expected and not entry.simulated):
            continue
        groups.setdefault((entry.key.stage, entry.expected.name, fit.rule.name, entry.simulated), []).append(
            entry
        )
    return [_arithmetic(*group, entries) for group, entries in groups.items()]


def _arithmetic(
    stage: str, expected: str, observed: str, simulated: bool, entries: Sequence[Judged]
) -> Finding:
    layers = [entry.key.layer for entry in entries]
    sizes = [entry.fit.residual for entry in entries if entry.fit is not None]
    told = f"layers {', '.join(str(layer) for layer in layers)}" if layers != [None] else "the whole model"
    if simulated:
        explanation = (
            f"{stage} ({told}): no arithmetic of the table explains it, expected is {expected}; judged by "
            f"the error that {expected} itself brings, so that smaller faults are not seen"
        )
    else:
        explanation = f"{stage} ({told}): {observed} fits (residual {max(sizes):.1e}), expected is {expected}"
    return Finding(
        type=FindingType.ARITHMETIC,
        layer=layers[0] if len(layers) == 1 else None,
        stages=(stage,),
        size=max(sizes),
        explanation=explanation,
        advice="check how the runtime was started and built; state what is wanted with --arithmetic",
    )


BLIND_ON_ONE_TOKEN = ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax")
"""Stages that are identities on a single token: whatever they compute, they cannot be seen to be wrong."""


def one_token_findings(rows: Sequence[Row], tokens: int) -> list[Finding]:
    """Return what a run of a single token leaves unmeasured."""
    blind = tuple(name for name in BLIND_ON_ONE_TOKEN if any(row.stage == name for row in compared(rows)))
    if tokens > 1 or not blind:
        return []
    return [
        Finding(
            type=FindingType.UNMEASURED,
            stages=blind,
            explanation=f"{', '.join(blind)}: on one token they are identities, right or wrong",
            advice="run at least two tokens",
        )
    ]


def unmeasured_findings(
    rows: Sequence[Row], judged: Mapping[Key, Judged], absent: Mapping[str, str]
) -> list[Finding]:
    """Return what was needed and could not be judged, with the command that would supply it.

    Args:
        rows: the rows of the comparison.
        judged: the subject's stages.
        absent: stage -> why the subject gave none, where it says so.

    """
    fitting = [(key, entry) for key, entry in judged.items() if entry.fit is not None]
    covered = {Key(key.layer, name) for key, entry in fitting for name in entry.composed}
    covered |= {Key(key.layer, name) for key, _ in fitting for name in HELD_IN.get(key.stage, ())}
    groups: dict[tuple[str, str, int | None], list[str]] = {}
    for row in rows:
        if row.verdict is Verdict.INTRODUCES:
            continue
        reason = _reason(row, judged.get(Key(row.layer, row.stage)), covered, absent)
        if reason is not None:
            groups.setdefault((*reason, row.layer), []).append(row.stage)
    return [
        Finding(
            type=FindingType.UNMEASURED,
            layer=layer,
            stages=tuple(names),
            explanation=f"{', '.join(names)}: {what}",
            advice=remedy,
        )
        for (what, remedy, layer), names in groups.items()
    ]


def _reason(
    row: Row, entry: Judged | None, covered: set[Key], absent: Mapping[str, str]
) -> tuple[str, str] | None:
    key = (row.layer, row.stage)
    if row.status is Status.MISSING_IN_SUBJECT and key not in covered and row.stage in absent:
        return f"the subject gave none: {absent[row.stage]}", ""
    if row.status is Status.MISSING_IN_SUBJECT and key not in covered:
        return "the subject has no such file", (
            "capture the subject again with these stages; if it accepts the names and writes nothing, "
            "its version does not store them"
        )
    if row.status is Status.MISSING_IN_ORACLE and row.verdict is Verdict.UNMEASURED:
        return "the oracle's trace has no such file", "capture the oracle again with --stages all"
    if row.status is not Status.NOT_REPLAYABLE:
        return None
    if row.accumulated is not None and entry is not None and entry.missing is not None:
        why = f"it differs from the oracle and cannot be replayed without {entry.missing.what}"
        return why, entry.missing.remedy
    return "the sides have different geometry", "run both sides on the same model"
