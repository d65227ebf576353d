"""Steps 9 and 10 of verifying a bundle: the traces against the lane, the figures against the traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.facts import Facts, Side
from apr_falsify.evidence.figures import check_bisection
from apr_falsify.evidence.files import BISECTION, BUNDLE, SIDES, load_json
from apr_falsify.evidence.findings import Findings
from apr_falsify.evidence.traces import SideTrace, as_problem, read_side
from apr_falsify.traces.identity import model_sha256
from apr_falsify.traces.trace import TRACE_JSON, Trace

if TYPE_CHECKING:
    from apr_falsify.formats.weights import Model, Weights

_LANE = ("runtime", "version", "device", "dtype", "model_sha256", "binary_sha256")
"""What the lane and the provenance of a trace both say of a side."""


def check_measured(facts: Facts, files: Mapping[str, bytes], weights: Model | None, found: Findings) -> None:
    """Check traces and bisections of a bundle whose files are all those of its statement."""
    sides = _sides(facts, files, found)  # 9
    found.attested.append("device and lane: what the capturing machine reported")
    held = _replay_weights(weights, sides, found)
    for name in sorted(files):  # 10
        if name.rpartition("/")[2] != BISECTION:
            continue
        try:
            data = load_json(files, name)
        except ValueError as error:
            found.problem("bad-bisection", name, f"is not usable: {error}")
            continue
        count = check_bisection(data, name, sides if name == BISECTION else None, held)
        found.recomputed += count.recomputed
        found.attested += count.attested
        found.problems += count.problems
        if not count.problems:
            found.kinds[name] = data["kind"]
    if weights is None and len(found.attested) > 1:
        found.not_checked.append("what needs weights to be replayed: give them with --weights MODEL")
    if sides is not None and not all(side.has_values for side in sides):
        found.not_checked.append("the values of the stages: the bundle holds their digests alone")


def _sides(facts: Facts, files: Mapping[str, bytes], found: Findings) -> tuple[SideTrace, SideTrace] | None:
    traces: list[SideTrace] = []
    for side in SIDES:
        if f"{side}/{TRACE_JSON}" not in files:
            if BISECTION in files or any(name.startswith(f"{side}/") for name in files):
                message = f"{side}/{TRACE_JSON} is not there, and something rests on it"
                found.problem("missing-file", f"{side}/{TRACE_JSON}", message)
            continue
        try:
            one = read_side(files, side)
        except AprFalsifyError as error:
            found.problems.append(as_problem(error, "bad-trace", f"{side}/{TRACE_JSON}"))
            continue
        traces.append(one)
        _check_lane(facts, side, one.trace, found)
    if len(traces) == 2 and traces[0].has_values != traces[1].has_values:
        found.problem("missing-file", "", "the stage files of one side are there, those of the other not")
    return (traces[0], traces[1]) if len(traces) == 2 and not found.problems else None


def _check_lane(facts: Facts, side: str, trace: Trace, found: Findings) -> None:
    """A trace of another machine or model than the lane says shows nothing about the lane."""
    said: Side | None = getattr(facts.lane, side)
    if said is None:
        found.problem("lane-differs", BUNDLE, f"names no {side}, and {side}/{TRACE_JSON} is there")
        return
    provenance = trace.provenance
    wrong = [name for name in _LANE if getattr(said, name) != getattr(provenance, name)]
    words = ", ".join(
        f"{name} {getattr(said, name)!r:.80}, its trace {getattr(provenance, name)!r:.80}" for name in wrong
    )
    found.check(f"lane: the {side}", not wrong, "lane-differs", BUNDLE, f"says of the {side} {words}")
    if side == "subject":
        _check_run(facts, trace, found)
    same = facts.lane.tokens == trace.tokens
    message = f"says tokens {list(facts.lane.tokens)}, {side}/{TRACE_JSON} says {list(trace.tokens)}"
    found.check(f"lane: tokens of the {side}", same, "lane-differs", BUNDLE, message)


def _check_run(facts: Facts, trace: Trace, found: Findings) -> None:
    """What was run of the subject, as far as its trace says."""
    for name in ("prompt", "layers"):
        said, ran = getattr(facts.lane, name), getattr(trace.provenance, name)
        message = f"says the {name} {said!r:.80}, subject/{TRACE_JSON} says {ran!r:.80}"
        found.check(f"lane: {name}", ran in (None, said), "lane-differs", BUNDLE, message)


def _replay_weights(
    model: Model | None, sides: tuple[SideTrace, SideTrace] | None, found: Findings
) -> tuple[Weights | None, Weights | None]:
    """Return the weights to replay either side with: the given model's, where that side ran it."""
    if model is None or sides is None:
        return None, None
    digest = model_sha256(model.files)
    ran = [side.trace.provenance.model_sha256 == digest for side in sides]
    if not any(ran):
        known = ", ".join(str(side.trace.provenance.model_sha256) for side in sides)
        message = f"{model.path} has the sha256 {digest}; its traces ran {known}"
        found.problem("other-weights", "", message)
    oracle, subject = (model.weights if one else None for one in ran)
    return oracle, subject
