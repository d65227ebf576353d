"""What a bisection did not look at, or broke down over, so that nobody takes it for checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr_falsify.compare.attempts import Breakdown
from apr_falsify.compare.bisection import Finding, FindingType, Row, Status, Verdict
from apr_falsify.compare.findings import place
from apr_falsify.compare.structure import same_shapes
from apr_falsify.formats.text_part import set_aside
from apr_falsify.formats.weights import Weights
from apr_falsify.model.families import family_of
from apr_falsify.model.stages import Key
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.trace import Trace

UNUSED_SHOWN = 12
"""How many names of a foreign recording's unused arrays are reported; the provenance holds all."""


def not_checked(rows: Sequence[Row], oracle: Trace, subject: Trace, weights: Weights | None) -> list[str]:
    """Return what was not looked at; ``weights`` are those that the subject was replayed with."""
    return [
        *_stages_not_requested(rows),
        *_layers_not_judged(rows, oracle, subject),
        *_without_reference(oracle.provenance),
        *_without_weights(oracle, subject, weights),
        *_beside_the_text(weights),
        *_not_in_the_recording(subject.provenance),
        *_tokens_not_known(subject),
        *_positions_said(subject),
    ]


def broken_down(noted: Sequence[Breakdown]) -> list[str]:
    """Return what broke down, each once over all layers, with its place and error."""
    layers: dict[tuple[str, str, str], list[int | None]] = {}
    for one in noted:
        layer, stage = (None, "") if one.key is None else one.key
        layers.setdefault((one.what, stage, one.error), []).append(layer)
    return [
        f"{what}{_at(stage, where)}: it broke down ({error})"
        for (what, stage, error), where in layers.items()
    ]


def _at(stage: str, layers: Sequence[int | None]) -> str:
    known = list(dict.fromkeys(layer for layer in layers if layer is not None))
    if len(known) > 1:
        return f" at layers {', '.join(map(str, known))} {stage}"
    return f" at {place(Key(layers[0], stage))}" if stage else ""


def breakdown_findings(noted: Sequence[Breakdown]) -> list[Finding]:
    """Return a finding for each breakdown that a verdict rested on: that stage is unmeasured."""
    return [
        Finding(
            type=FindingType.UNMEASURED,
            layer=one.key.layer,
            stages=(one.key.stage,),
            explanation=f"{one.key.stage}: {one.what} broke down ({one.error})",
            advice=_OUT_OF_MEMORY if one.memory else _DEFECT,
        )
        for one in noted
        if one.needed and one.key is not None
    ]


_OUT_OF_MEMORY = "compare fewer --layers or --stages at once"
_DEFECT = "this is a defect of apr-falsify: run again with --debug for the traceback and report it"


def _stages_not_requested(rows: Sequence[Row]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.status is Status.NOT_REQUESTED:
            names.setdefault("" if row.layer is None else f" of layer {row.layer}", []).append(row.stage)
    if names:
        told = "; ".join(f"{', '.join(stages)}{place}" for place, stages in names.items())
        yield f"what was not requested: {told}"


def _layers_not_judged(rows: Sequence[Row], oracle: Trace, subject: Trace) -> Iterator[str]:
    judged = {row.layer for row in rows if row.layer is not None and row.verdict is not Verdict.UNMEASURED}
    layers = subject.geometry.layers
    if len(judged) < layers:
        yield f"{layers - len(judged)} of the model's {layers} layers"
    lonely = sorted(set(oracle.layers) ^ set(subject.layers))
    if lonely:
        yield f"layers that only one side holds: {', '.join(str(layer) for layer in lonely)}"


def _without_reference(oracle: Provenance) -> Iterator[str]:
    if oracle.runtime != "hf":
        yield f"the reference itself: it is a run of {oracle.runtime}, not of HuggingFace"


def _without_weights(oracle: Trace, subject: Trace, weights: Weights | None) -> Iterator[str]:
    if not same_shapes(oracle.geometry, subject.geometry):
        yield "the weights, and what needs them to be replayed: the sides have different geometry"
    elif weights is None:
        yield (
            "what needs weights to be replayed: name the model, --oracle MODEL (bisect) or "
            "--weights MODEL (compare)"
        )


def _beside_the_text(weights: Weights | None) -> Iterator[str]:
    if weights is None or not weights.of_checkpoint or not family_of(weights.geometry).part_of:
        return
    parts = set_aside(weights.tensors, weights.names, family_of(weights.geometry).weights)
    if parts:
        listed = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
        yield f"what the checkpoint holds beside its text model: {listed}"


def _positions_said(subject: Trace) -> Iterator[str]:
    passes = subject.passes
    first = int(passes.at[passes.padding])
    if passes.padding and first:
        yield (
            f"positions: the first token after the padding stands at {first}, as is said; where padding does "
            "not count it stands at 0"
        )


def _not_in_the_recording(subject: Provenance) -> Iterator[str]:
    yield from (f"{name}: {why}" for name, why in subject.absent.items())
    if subject.unused:
        shown = ", ".join(subject.unused[:UNUSED_SHOWN])
        more = len(subject.unused) - UNUSED_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        yield f"arrays of the recording that no stage was read from: {shown}{rest}"


def _tokens_not_known(subject: Trace) -> Iterator[str]:
    if not subject.tokens_verified:
        yield "the token ids: nothing in the subject's trace says which tokens it ran"
