"""The number format in which a run holds its values, where they show another than is said.

Ports that run in f16 often save f32 files, or round an f32 run when they save it; a run in bf16 rounds the
weights of an f32 checkpoint; hooks see values that the next product takes rounded. None of this is a fault.
Nothing is done where a run is right as it is declared. Else each is a hypothesis, and it is believed where
fewer stages are wrong by it and no other one is, so that a fault beside it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
"""What would be told of a run if it were believed."""

_LAYERS = 3
"""In how many layers a hypothesis is judged before it is believed."""

_ROWS = 8
"""How many rows of each weight are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A run as it is taken to hold its values.

    Attributes:
        trace: the run.
        weights: the weights to replay it with, ``None`` where there are none.

    """

    trace: Trace
    weights: Weights | None


def in_its_format(said: Held, keys: Sequence[Key], arithmetic: str | None = None) -> tuple[Held, Hypothesis]:
    """Return a run as its values show that it holds them, and a finding for each thing said otherwise.

    Args:
        said: the run as it is declared.
        keys: the stages to judge.
        arithmetic: what the user states of it.

    """
    sample = _sample(said.trace, keys)
    kept, saved = _hypotheses(said)
    if not kept and not saved:
        kept = _of_weights_alone(said, sample, arithmetic)
    if not kept and not saved:
        return said, ()
    before = _wrong(said, sample, arithmetic)
    best = _best(said, kept, before, (before, ()), sample, arithmetic)
    # The floors of a run that was saved in 16 bits are wide: not for one stage alone, which may be a fault.
    if len({name for _, name in best[0]}) > 1:
        other = _best(said, saved, before, best, sample, arithmetic)
        best = other if 2 * len(other[0]) < len(best[0]) else best
    return _under(said, best[1]), best[1]


def _best(
    said: Held,
    hypotheses: Collection[Hypothesis],
    before: set[Key],
    best: tuple[set[Key], Hypothesis],
    sample: Sequence[Key],
    arithmetic: str | None,
) -> tuple[set[Key], Hypothesis]:
    """Return the first hypothesis by which the fewest stages are wrong, and none but of ``before``."""
    for hypothesis in hypotheses:
        if best[0]:
            after = _wrong(_under(said, hypothesis), sample, arithmetic)
            if len(after) < len(best[0]) and after <= before:
                best = after, hypothesis
    return best


def _wrong(held: Held, sample: Sequence[Key], arithmetic: str | None) -> set[Key]:
    judged = judge(held.trace, held.weights, sample, arithmetic)
    return wrong(judged, judged)


def _sample(trace: Trace, keys: Sequence[Key]) -> list[Key]:
    """Return the captured stages of the first layers, all of them where none is of a layer."""
    captured = [key for key in keys if key in trace.stages]
    layers = list(dict.fromkeys(key.layer for key in captured if key.layer is not None))[:_LAYERS]
    return [key for key in captured if key.layer in layers] if layers else captured


# --- hypotheses -------------------------------------------------------------------------------------


def _hypotheses(said: Held) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Return what may be said of a run that keeps 16 bits, and of one that was saved in them.

    Of the first: its format, where another is said; then with rounded weights, with products that round
    what they take, and with both.
    """
    provenance = said.trace.provenance
    if provenance.runtime == "hf":  # its capture casts the weights and keeps every stage as it is
        return [], []
    stated = FORMATS.get(provenance.dtype)
    seen = seen_format((name, array.data) for (_, name), array in said.trace.stages.items())
    if seen is None or seen.format.unit_roundoff <= (UNIT if stated is None else stated.unit_roundoff):
        return ([] if stated not in SIXTEEN_BITS else _within(said, stated, ())), []
    kept = (_kept(seen, provenance.dtype),)
    return [kept, *_within(said, seen.format, kept)], [(_saved(said.trace, seen),)]


def _within(said: Held, kept: Format, first: Hypothesis) -> list[Hypothesis]:
    """Return ``first`` with rounded weights, with rounded operands, and with both, where there are such."""
    weights = () if _are_rounded(said.weights, kept) else (_rounded_weights(kept),)
    names = _unrounded_operands(said.trace, kept)
    operands = (_rounded_operands(kept, names),) if names else ()
    more = dict.fromkeys(((*weights,), (*operands,), (*weights, *operands)))
    return [(*first, *each) for each in more if each]


_PRODUCTS = 4
"""As many products must be wrong before weights are suspected that no 16-bit stage speaks of."""


def _of_weights_alone(said: Held, sample: Sequence[Key], arithmetic: str | None) -> list[Hypothesis]:
    """Return the weights, or the matrices among them, rounded to 16 bits where all products are wrong."""
    formats = [kept for kept in SIXTEEN_BITS if not _are_rounded(said.weights, kept)]
    stated = FORMATS.get(said.trace.provenance.dtype)
    if not formats or stated in SIXTEEN_BITS or said.trace.provenance.runtime == "hf":
        return []
    replayer = replayer_of(said.trace, said.weights, arithmetic)
    products = [key for key in sample if replayer.operation(key) is Operation.PROJECTION][:_PRODUCTS]
    if len(products) < _PRODUCTS or any(_wrong(said, [key], arithmetic) == set() for key in products):
        return []
    return [(finding(kept),) for kept in formats for finding in (_rounded_weights, _rounded_matrices)]


def _are_rounded(weights: Weights | None, kept: Format) -> bool:
    """Whether rounding changes no weight, as far as the first rows of the first layer tell."""
    if weights is None or weights.held_as is not None:
        return True
    try:
        tensors = [weights.tensor(role, 0) for role in roles_at(weights.geometry, 0)]
        return all(holds(kept, tensor.rows(0, min(_ROWS, tensor.shape[0]))) for tensor in tensors)
    except ModelError:
        return True  # what cannot be read is told where it is needed


def _unrounded_operands(trace: Trace, kept: Format) -> tuple[str, ...]:
    """Return the stages that a product takes and that hold what the format cannot."""
    found = set()
    for (layer, name), array in trace.stages.items():
        if name in _operands(trace, layer) and name not in found and not holds(kept, array.data):
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


# --- what is told, and how a run is read by it ------------------------------------------------------


def _told(how: str, kept: Format, why: str, advice: str = "", stages: tuple[str, ...] = ()) -> Finding:
    return Finding(
        type=FindingType.RECORDING, stages=stages, explanation=f"{how} {kept.name}: {why}", advice=advice
    )


def _values_of(seen: Seen) -> str:
    others = f" (not: {', '.join(seen.others)})" if seen.others else ""
    return f"{seen.holding} of {seen.arrays} arrays hold no other values{others}"


def _kept(seen: Seen, stated: str) -> Finding:
    name = seen.format.name
    why = f"{_values_of(seen)}, and by its rounding the stages fit; said is {stated}"
    return _told(_KEPT, seen.format, why, f"`dtype: {name}` in the mapping says so")


def _saved(trace: Trace, seen: Seen) -> Finding:
    stages = in_forward_order({name for _, name in trace.stages} - set(seen.others))
    why = f"{_values_of(seen)}; with that rounding of what was saved the stages fit, and not as values kept"
    return _told(_SAVED, seen.format, why, "save them in full: what is smaller than that is not seen", stages)


def _rounded_weights(kept: Format) -> Finding:
    return _told(_WEIGHTS, kept, "the products fit with the checkpoint's weights rounded to that format")


def _rounded_matrices(kept: Format) -> Finding:
    why = (
        "the products fit with the checkpoint's matrices rounded to that format, norms and biases as they are"
    )
    return _told(_MATRICES, kept, why)


def _rounded_operands(kept: Format, stages: tuple[str, ...]) -> Finding:
    why = f"{', '.join(stages)} hold more digits, and what is multiplied with them fits with rounded ones"
    return _told(_OPERANDS, kept, why, stages=stages)


_KEPT, _SAVED = "the stages are kept in", "the stages were saved in"
_WEIGHTS, _OPERANDS = "the weights are held in", "products round what they take to"
_MATRICES = "the matrices are held in"


def as_told(said: Held, name: str, stages: tuple[str, ...]) -> Held:
    """Return a run as a finding of this module says that it holds its values.

    Args:
        said: the run.
        name: what stands before the colon of the explanation; any other name changes nothing.
        stages: the finding's stages.

    """
    how, _, kept = name.rpartition(" ")
    return _READ[how](said, FORMATS[kept], stages) if how in _READ and kept in FORMATS else said


def _under(said: Held, hypothesis: Hypothesis) -> Held:
    for finding in hypothesis:
        said = as_told(said, finding.explanation.partition(":")[0], finding.stages)
    return said


def _with(said: Held, **provenance: Any) -> Held:
    return replace(said, trace=replace(said.trace, provenance=replace(said.trace.provenance, **provenance)))


def _with_weights(said: Held, **how: Any) -> Held:
    return replace(said, weights=None if said.weights is None else replace(said.weights, **how))


_READ: Mapping[str, Callable[[Held, Format, tuple[str, ...]], Held]] = {
    _KEPT: lambda said, kept, stages: _with(said, dtype=kept.name, saved_as={}),
    _SAVED: lambda said, kept, stages: _with(said, saved_as=dict.fromkeys(stages, kept.name)),
    _OPERANDS: lambda said, kept, stages: _with(said, operands=dict.fromkeys(stages, kept.name)),
    _WEIGHTS: lambda said, kept, stages: _with_weights(said, held_as=kept),
    _MATRICES: lambda said, kept, stages: _with_weights(said, held_as=kept, matrices_alone=True),
}
"""How a run holds its values -> the run read so, given the format and the stages that it is said of."""
