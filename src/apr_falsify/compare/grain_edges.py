"""Values on an edge between two steps of 8-bit numbers whose scale a whole group of values shares.

As in ``compare.edges``, nothing is excused but what such values make exactly: each is moved across its edge
alone, and what the stage becomes is looked for in what the replay leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attention_edges import EdgeStage, chosen_shifts
from apr_falsify.compare.crossing import NUDGE
from apr_falsify.compare.replay import Replayer
from apr_falsify.model.stages import Key
from apr_falsify.numerics.grains import Grain
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.attention import OPERANDS
from apr_falsify.operators.roundoff import Known

F64 = npt.NDArray[np.float64]

_MOST = 48
"""Values on an edge that are tried at most: each costs a replay of the stage."""

_MOST_BEYOND = 0.5
"""The share of a stage that such values may move: one is a row of a product, or a key for all queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grained:
    """An operand in 8 bits.

    Attributes:
        grain: what is left of it.
        role: the input that it is, ``""`` for the only one.
        operation: the part of attention as one whose rule holds it, ``None`` where the rule does itself.

    """

    grain: Grain
    role: str
    operation: Operation | None = None


def grained_operands(rule: Rule, operation: Operation) -> tuple[Grained, ...]:
    """Return the operands that a rule holds so."""
    if operation is Operation.ATTENTION:
        parts = (Operation.SCORES, Operation.MIX)
        return tuple(
            replace(found, operation=part)
            for part in parts
            for found in grained_operands(rule.of(part), part)
        )
    if isinstance(rule.left, Grain):
        return (Grained(grain=rule.left, role=""),)
    if isinstance(rule.right, Grain):
        return (Grained(grain=rule.right, role=OPERANDS[operation][1]),)
    return ()


def grains_on_the_other_side(
    stage: EdgeStage, replayer: Replayer, key: Key, inputs: Mapping[str, Known], rule: Rule
) -> tuple[F64, int]:
    """Return the replayed stage with those values across their edge that the subject has there; how many."""
    if not 0 < np.mean(stage.beyond(stage.expected)) <= _MOST_BEYOND:
        return stage.expected, 0
    kept = [_Kept.of(one, replayer, key, inputs) for one in grained_operands(rule, replayer.operation(key))]
    edges = [(one, at) for one in kept for at in one.near()]
    if not edges or len(edges) > _MOST:
        return stage.expected, 0

    def evaluated(chosen: list[tuple[_Kept, int]]) -> F64:
        moved = rule
        for one in kept:
            moved = one.put(moved, [at for which, at in chosen if which is one])
        return np.asarray(replayer.evaluate(key, inputs, (moved,)).values[0])

    base = evaluated([])
    whole = np.s_[...]
    shifts = [((whole,), stage.shaped(evaluated([edge]) - base)) for edge in edges]
    chosen = chosen_shifts(stage, shifts)
    moved = stage.expected + stage.shaped(evaluated([edges[at] for at in chosen]) - base)
    return stage.nearer(np.asarray(moved), len(chosen))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kept:
    """An operand beside what is left of it, as its grain takes it.

    Attributes:
        of_rule: the operand.
        values: its values.
        held: what is left of them.

    """

    of_rule: Grained
    values: F64
    held: F64

    @classmethod
    def of(cls, operand: Grained, replayer: Replayer, key: Key, inputs: Mapping[str, Known]) -> _Kept:
        geometry = replayer.trace.geometry
        if not operand.role:
            (known,) = inputs.values()
            values = known.value
        else:
            mixed = operand.role == "qkv_bias"
            size = geometry.value_dim if mixed else geometry.head_dim
            width = geometry.kv_heads * size
            values = inputs[operand.role].value[:, -width:].reshape(-1, geometry.kv_heads, size)
        return cls(of_rule=operand, values=values, held=operand.grain(values))

    def near(self) -> list[int]:
        """Return where values lie so near to an edge that they may fall to either side."""
        steps = self.of_rule.grain.steps(self.values)
        near = steps.fraction * np.abs(steps.scale) <= np.abs(self.values) * NUDGE
        found: list[int] = np.flatnonzero(near & (self.values != 0)).tolist()
        return found

    def put(self, rule: Rule, moved: list[int]) -> Rule:
        """Return ``rule`` with this operand as held, the values at ``moved`` across their edge."""
        steps, held = self.of_rule.grain.steps(self.values), self.held.copy()
        held.reshape(-1)[moved] += (steps.flip * steps.scale).reshape(-1)[moved]
        fixed = _fixed(held)
        part = self.of_rule.operation
        if part is None:
            return replace(rule, right=fixed) if self.of_rule.role else replace(rule, left=fixed)
        changed = replace(rule.of(part), right=fixed)
        return replace(
            rule, parts=tuple((name, changed if name == part else one) for name, one in rule.parts)
        )


def _fixed(held: F64) -> Callable[[npt.NDArray[np.floating]], F64]:
    """Return an operand that is ``held`` whatever it is given: all rows of it, or the last one."""
    return lambda values: held if values.ndim == held.ndim else held[-1]
