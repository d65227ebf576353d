"""The number format in which a run holds its values, where they show another than is declared.

Ports that run in f16 often save f32 files, or round an f32 run when they save it; a run in bf16 rounds the
weights of an f32 checkpoint; hooks see values that the next product takes rounded. None of this is a fault.
Nothing is done where a run is right as it is declared. Else each is a hypothesis, and it is believed where
fewer stages are wrong by it and no other one is, so that a fault beside it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.judge import judge, replayer_of
from apr_falsify.compare.proof import wrong
from apr_falsify.compare.seen_format import SIXTEEN_BITS, Seen, holds, seen_format
from apr_falsify.errors import ModelError
from apr_falsify.formats.weights import Weights
from apr_falsify.model.families import graph_of, roles_at
from apr_falsify.model.stages import Key, in_forward_order
from apr_falsify.model.wiring import inputs_of
from apr_falsify.numerics.arithmetic import FORMATS, Format
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.roundoff import UNIT
from apr_falsify.operators.table import operator_of
from apr_falsify.traces.trace import Trace

Hypothesis = tuple[Finding, ...]
"""What would be reported of a run if it were believed."""

_LAYERS = 3
"""In how many layers a hypothesis is judged before it is believed."""

_ROWS = 8
"""How many rows of each weight are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run as it is taken to hold its values.

    Attributes:
        trace: the run.
        weights: the weights to replay it with, ``None`` where there are none.

    """

    trace: Trace
    weights: Weights | None


def in_its_format(
    run: StoredRun, keys: Sequence[Key], arithmetic: str | None = None
) -> tuple[StoredRun, Hypothesis]:
    """Return a run as its values show it, and a finding for each difference from what it declares.

    Args:
        run: the run as it is declared.
        keys: the stages to judge.
        arithmetic: what the user states of it.

    """
    sample = _sample(run.trace, keys)
    number_format, saved = _hypotheses(run)
    if not number_format and not saved:
        number_format = _of_weights_alone(run, sample, arithmetic)
    if not number_format and not saved:
        return run, ()
    before = _wrong(run, sample, arithmetic)
    best = _best(run, number_format, before, (before, ()), sample, arithmetic)
    # The floors of a run that was saved in 16 bits are wide: not for one stage alone, which may be a fault.
    if len({name for _, name in best[0]}) > 1:
        other = _best(run, saved, before, best, sample, arithmetic)
        best = other if 2 * len(other[0]) < len(best[0]) else best
    return _under(run, best[1]), best[1]


def _best(
    run: StoredRun,
    hypotheses: Collection[Hypothesis],
    before: set[Key],
    best: tuple[set[Key], Hypothesis],
    sample: Sequence[Key],
    arithmetic: str | None,
) -> tuple[set[Key], Hypothesis]:
    """Return the first hypothesis by which the fewest stages are wrong, and none but of ``before``."""
    for hypothesis in hypotheses:
        if best[0]:
            after = _wrong(_under(run, hypothesis), sample, arithmetic)
            if len(after) < len(best[0]) and after <= before:
                best = after, hypothesis
    return best


def _wrong(run: StoredRun, sample: Sequence[Key], arithmetic: str | None) -> set[Key]:
    # What breaks down here does so again where the run is judged, and is reported there.
    judged = judge(run.trace, run.weights, sample, arithmetic, attempts=Attempts())
    return wrong(judged, judged)


def _sample(trace: Trace, keys: Sequence[Key]) -> list[Key]:
    """Return the captured stages of the first layers, all of them where none is of a layer."""
    captured = [key for key in keys if key in trace.stages]
    layers = list(dict.fromkeys(key.layer for key in captured if key.layer is not None))[:_LAYERS]
    return [key for key in captured if key.layer in layers] if layers else captured


# --- hypotheses -------------------------------------------------------------------------------------


def _hypotheses(run: StoredRun) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Return the hypotheses on a run that computes in 16 bits, and on one that was saved in them.

    Of the first: its format, where another is declared; then with rounded weights, with products that round
    what they take, and with both.
    """
    provenance = run.trace.provenance
    if provenance.runtime == "hf":  # its capture casts the weights and keeps every stage as it is
        return [], []
    stated = FORMATS.get(provenance.dtype)
    seen = seen_format((name, array.data) for (_, name), array in run.trace.stages.items())
    if seen is None or seen.format.unit_roundoff <= (UNIT if stated is None else stated.unit_roundoff):
        return ([] if stated not in SIXTEEN_BITS else _within(run, stated, ())), []
    number_format = (_format_finding(seen, provenance.dtype),)
    return [number_format, *_within(run, seen.format, number_format)], [(_saved_finding(run.trace, seen),)]


def _within(run: StoredRun, number_format: Format, first: Hypothesis) -> list[Hypothesis]:
    """Return ``first`` with rounded weights, with rounded operands, and with both, where there are such."""
    weights = () if _are_rounded(run.weights, number_format) else (_weights_finding(number_format),)
    names = _unrounded_operands(run.trace, number_format)
    operands = (_operands_finding(number_format, names),) if names else ()
    more = dict.fromkeys(((*weights,), (*operands,), (*weights, *operands)))
    return [(*first, *each) for each in more if each]


_PRODUCTS = 4
"""As many products must be wrong before weights are suspected that no 16-bit stage speaks of."""


def _of_weights_alone(run: StoredRun, sample: Sequence[Key], arithmetic: str | None) -> list[Hypothesis]:
    """Return the weights, or the matrices among them, rounded to 16 bits where all products are wrong."""
    formats = [one for one in SIXTEEN_BITS if not _are_rounded(run.weights, one)]
    stated = FORMATS.get(run.trace.provenance.dtype)
    if not formats or stated in SIXTEEN_BITS or run.trace.provenance.runtime == "hf":
        return []
    replayer = replayer_of(run.trace, run.weights, arithmetic)
    products = [key for key in sample if replayer.operation(key) is Operation.PROJECTION][:_PRODUCTS]
    if len(products) < _PRODUCTS or any(_wrong(run, [key], arithmetic) == set() for key in products):
        return []
    return [(finding(one),) for one in formats for finding in (_weights_finding, _matrices_finding)]


def _are_rounded(weights: Weights | None, number_format: Format) -> bool:
    """Whether rounding changes no weight, as far as the first rows of the first layer tell."""
    if weights is None or weights.cast_to is not None:
        return True
    try:
        tensors = [weights.tensor(role, 0) for role in roles_at(weights.geometry, 0)]
        return all(holds(number_format, tensor.rows(0, min(_ROWS, tensor.shape[0]))) for tensor in tensors)
    except ModelError:
        return True  # what cannot be read is reported where it is needed


def _unrounded_operands(trace: Trace, number_format: Format) -> tuple[str, ...]:
    """Return the stages that a product takes and that hold what the format cannot."""
    found = set()
    for (layer, name), array in trace.stages.items():
        if name in _operands(trace, layer) and name not in found and not holds(number_format, array.data):
            found.add(name)
    return in_forward_order(found)


def _operands(trace: Trace, layer: int | None) -> set[str]:
    """Return the stages that the products of a layer take; the head takes the last norm."""
    geometry = trace.geometry
    return {
        source
        for name, node in graph_of(geometry).at(layer).items()
        if operator_of(node).operation is not Operation.ELEMENTWISE
        for _, source in inputs_of(name, geometry, layer).values()
    }


# --- what is reported, and how a run is read by it ------------------------------------------------------


def _finding(
    how: str, number_format: Format, why: str, advice: str = "", stages: tuple[str, ...] = ()
) -> Finding:
    return Finding(
        type=FindingType.RECORDING,
        stages=stages,
        explanation=f"{how} {number_format.name}: {why}",
        advice=advice,
    )


def _values_of(seen: Seen) -> str:
    others = f" (not: {', '.join(seen.others)})" if seen.others else ""
    return f"{seen.holding} of {seen.arrays} arrays hold no other values{others}"


def _format_finding(seen: Seen, stated: str) -> Finding:
    name = seen.format.name
    why = f"{_values_of(seen)}, and by its rounding the stages fit; declared is {stated}"
    return _finding(_FORMAT, seen.format, why, f"`dtype: {name}` in the mapping says so")


def _saved_finding(trace: Trace, seen: Seen) -> Finding:
    stages = in_forward_order({name for _, name in trace.stages} - set(seen.others))
    why = f"{_values_of(seen)}; the stages fit with that rounding on saving, and not as values of the run"
    return _finding(
        _SAVED, seen.format, why, "save them in full: what is smaller than that is not seen", stages
    )


def _weights_finding(number_format: Format) -> Finding:
    return _finding(
        _WEIGHTS, number_format, "the products fit with the checkpoint's weights rounded to that format"
    )


def _matrices_finding(number_format: Format) -> Finding:
    why = "the products fit with the checkpoint's matrices rounded so, and norms and biases as they are"
    return _finding(_MATRICES, number_format, why)


def _operands_finding(number_format: Format, stages: tuple[str, ...]) -> Finding:
    why = f"{', '.join(stages)} hold more digits, and what is multiplied with them fits with rounded ones"
    return _finding(_OPERANDS, number_format, why, stages=stages)


_FORMAT, _SAVED = "the stages are stored in", "the stages were saved in"
_WEIGHTS, _OPERANDS = "the weights are rounded to", "products round what they take to"
_MATRICES = "the matrices are rounded to"
_EARLIER = {"the stages are kept in": _FORMAT, "the weights are held in": _WEIGHTS}
"""Words of bundles that were made before -> today's."""


def as_stated(run: StoredRun, name: str, stages: tuple[str, ...]) -> StoredRun:
    """Return a run as a finding of this module says that it holds its values.

    Args:
        run: the run.
        name: what stands before the colon of the explanation; any other name changes nothing.
        stages: the finding's stages.

    """
    words, _, number_format = name.rpartition(" ")
    read = _READ.get(_EARLIER.get(words, words))
    return run if read is None or number_format not in FORMATS else read(run, FORMATS[number_format], stages)


def _under(run: StoredRun, hypothesis: Hypothesis) -> StoredRun:
    for finding in hypothesis:
        run = as_stated(run, finding.explanation.partition(":")[0], finding.stages)
    return run


def _with(run: StoredRun, **provenance: Any) -> StoredRun:
    return replace(run, trace=replace(run.trace, provenance=replace(run.trace.provenance, **provenance)))


def _with_weights(run: StoredRun, **how: Any) -> StoredRun:
    return replace(run, weights=None if run.weights is None else replace(run.weights, **how))


_READ: Mapping[str, Callable[[StoredRun, Format, tuple[str, ...]], StoredRun]] = {
    _FORMAT: lambda run, number_format, stages: _with(run, dtype=number_format.name, saved_as={}),
    _SAVED: lambda run, number_format, stages: _with(run, saved_as=dict.fromkeys(stages, number_format.name)),
    _OPERANDS: lambda run, number_format, stages: _with(
        run, operands=dict.fromkeys(stages, number_format.name)
    ),
    _WEIGHTS: lambda run, number_format, stages: _with_weights(run, cast_to=number_format),
    _MATRICES: lambda run, number_format, stages: _with_weights(
        run, cast_to=number_format, matrices_alone=True
    ),
}
"""How a run stores its values -> the run read so, given the format and the stages that it is about."""
