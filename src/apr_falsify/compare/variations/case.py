"""One stage that differs from its replay, and what variations need to compute it otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import rounding
from apr_falsify.compare.layout import of_data, only_data
from apr_falsify.compare.recorded_formats import saved_unit
from apr_falsify.compare.replay import Replayer, is_mixed
from apr_falsify.compare.site import NotCaptured, ReplaySite, WeightsNeeded
from apr_falsify.formats.tensors import FloatArray, Tensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.graph import Node
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import EXPERT_BIASES, EXPERT_ROLES, Geometry
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.roundoff import TINY, UNIT, Known, lost, stored
from apr_falsify.operators.table import operation_of, span_from

F64 = npt.NDArray[np.float64]

_MORE_ROUNDINGS = 2.0
"""How many roundings a wrong computation may have beyond those of the right one: of its own result, or of
the right one, where it went by way of that."""


_OF_NO_DATA = 1e30
"""The sigma of what is no data: so large that it weighs nothing in a fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A stage under one hypothesis.

    Attributes:
        says: the hypothesis, the subject of a sentence that goes on with "fits".
        values: what the stage would be, in its canonical shape.
        sigma: the rounding of that; ``None`` where it is that of the replay.
        instead: what the model says instead, or what follows; a clause, or empty.
        name: the cause, where it is not the variation's own name.

    """

    says: str
    values: F64
    sigma: F64 | None = None
    instead: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One captured stage beside its replay.

    Attributes:
        replayer: replays the trace.
        key: the stage.
        rule: the arithmetic under which it is replayed.
        subject: the captured stage, canonical shape, f64.
        limit: how many sigma a correct value may be off.
        known: what it is computed from.
        expected: its replay, canonical shape.
        sigma: the rounding of the replay.

    """

    replayer: Replayer
    key: Key
    rule: Rule
    subject: F64
    limit: float
    known: Mapping[str, Known]
    expected: F64
    sigma: F64

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.key.stage

    @property
    def layer(self) -> int | None:
        """The stage's layer."""
        return self.key.layer

    @property
    def span(self) -> tuple[Node, ...]:
        """The nodes that the stage is computed through, from what is known; it is the last of them."""
        return span_from(self.name, self.geometry, self.layer, self.known)

    @property
    def operation(self) -> Operation:
        """How runtimes hold the stage's operands."""
        return operation_of(self.span)

    def node(self, operator: str) -> Node | None:
        """Return the node of the span that has ``operator``, ``None`` where there is none."""
        return next((node for node in self.span if node.operator == operator), None)

    def after(self, inner: str) -> Case:
        """Return the case where a stage within the span is known: computed, with the rounding of that."""
        found = self.replayer.evaluate(Key(self.layer, inner), self.known, (self.rule,))
        return replace(self, known={inner: Known(value=found.values[0], sigma=found.sigma)})

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.replayer.trace.geometry

    @property
    def rope(self) -> Rope:
        """The rotary embedding of the layer."""
        return self.geometry.rope_at(self.layer)

    @property
    def weights(self) -> Weights:
        """The weights; raises :class:`WeightsNeeded` where there are none."""
        if self.replayer.weights is None:
            raise WeightsNeeded
        return self.replayer.weights

    @property
    def inputs(self) -> dict[str, F64]:
        """What the stage is computed from."""
        return {role: known.value for role, known in self.known.items()}

    def captured(self, name: str, layer: int | None = None) -> F64 | None:
        """Return another captured stage, of the same layer unless another is named.

        ``None`` too where only its last token was captured and the case has more: nothing can be made of it.
        """
        key = Key(self.layer if layer is None else layer, name)
        array = self.replayer.trace.stages.get(key)
        if array is not None and Layout.LAST_TOKEN in array.layout and self._tokens > 1:
            return None
        return self.replayer.captured(key)

    @property
    def _tokens(self) -> int:
        axes = STAGES[self.name].axes
        return self.expected.shape[axes.index("tokens")] if "tokens" in axes else 1

    def vector(self, role: str) -> F64:
        """Return a one-dimensional weight of this layer."""
        return self.weights.vector(role, self.layer).astype(np.float64)

    def shaped(self, values: F64) -> F64:
        """Return ``values`` in the form in which the runtime keeps the stage."""
        trace = self.replayer.trace
        values = only_data(values, self.key, trace.stages[self.key].layout, self.geometry, trace.passes)
        return values if values.shape == self.subject.shape else values[-len(self.subject) :]

    @property
    def shaped_sigma(self) -> F64:
        """The rounding of the replay in that form; what is no data has so much that it weighs nothing."""
        found = of_data(self.sigma, self.name, self.replayer.trace.passes, _OF_NO_DATA)
        shaped = self.shaped(found)
        if found is self.sigma:
            return shaped
        return np.where(found[-len(shaped) :] == _OF_NO_DATA, _OF_NO_DATA, shaped)

    def evaluated(
        self,
        says: str,
        inputs: Mapping[str, F64] | None = None,
        geometry: Geometry | None = None,
        weights: Weights | None = None,
        **words: str,
    ) -> Guess:
        """Compute the stage with other inputs, geometry or weights, under the same arithmetic."""
        known = dict(self.known)
        known.update(self._known(inputs))
        replayer = self.replayer
        if geometry is not None or weights is not None:
            trace = replace(replayer.trace, geometry=geometry or self.geometry)
            replayer = Replayer(trace, weights or replayer.weights, replayer.store)
        found = replayer.evaluate(self.key, known, (self.rule,))
        return Guess(says=says, values=found.values[0], sigma=found.sigma, **words)

    def guess(
        self,
        says: str,
        values: F64,
        inputs: Mapping[str, F64] | None = None,
        angle_errors: F64 | None = None,
        **words: str,
    ) -> Guess:
        """Return a stage that was computed here, with the rounding that such values bring.

        Args:
            says: the hypothesis.
            values: the stage.
            inputs: those that are not the replay's.
            angle_errors: of a rotation that is not the model's, see :class:`ReplaySite`.
            words: further words of the guess.

        """
        if self.operation is Operation.PROJECTION or is_mixed(self.key, self.geometry):
            return Guess(says=says, values=values, sigma=None, **words)
        known = {**self.known, **self._known(inputs)}
        site = ReplaySite(
            weights=self.replayer.weights,
            geometry=self.geometry,
            layer=self.layer,
            tokens=self.replayer.trace.tokens,
            in_passes=self.replayer.trace.passes,
            angle_errors=angle_errors,
        )
        own = rounding(self.name, known, values, site, self.replayer.store)
        sigma = self.replayer.saved_sigma(self.key, values, own)
        return Guess(says=says, values=values, sigma=sigma, **words)

    def _known(self, inputs: Mapping[str, F64] | None) -> dict[str, Known]:
        """Return other inputs, rounded as the captured ones were when they were saved.

        One that was computed here, and not captured, keeps the rounding that it carries.
        """
        unit = saved_unit(self.replayer.trace)
        captured = self.replayer.trace.stages
        computed = {
            role: self.known[role].sigma
            for role, source in self.replayer.sources(self.key).items()
            if source not in captured and role in self.known
        }
        found: dict[str, Known] = {}
        for role, value in (inputs or {}).items():
            sigma = np.sqrt(stored(value, unit) + lost(unit)) if unit > UNIT else None
            carried = computed.get(role)
            if carried is not None and carried.shape == value.shape:
                sigma = carried
            found[role] = Known(value=value, sigma=sigma)
        return found

    def ratio(self, guess: Guess, more_roundings: float = _MORE_ROUNDINGS) -> F64:
        """Return |subject - guess| in sigma, 0 where either is not finite."""
        values = self.shaped(guess.values)
        sigma = self.shaped(self.sigma if guess.sigma is None else guess.sigma)
        unit = max(self.replayer.store, saved_unit(self.replayer.trace))
        largest = np.maximum(np.abs(values), np.abs(self.shaped(self.expected)))
        with np.errstate(invalid="ignore", over="ignore"):
            allowed = np.sqrt(np.square(sigma) + np.square(largest * unit) * (more_roundings / 3)) + TINY
            ratio = np.abs(self.subject - values) / allowed
        counted = np.isfinite(self.subject) & np.isfinite(values)
        return np.where(counted, ratio, 0.0)

    def sized(self, guess: Guess) -> tuple[F64, F64, float]:
        """Return what ``excess_of`` takes: the ratio of one rounding, the guess, the stage's roundoff."""
        ratio = self.ratio(guess, more_roundings=0.0)
        return ratio, self.shaped(guess.values), self.replayer.unit_of(self.key)

    def fits(self, guess: Guess) -> bool:
        """Whether every finite value of the subject is within the limit, and none is left uncompared."""
        values = self.shaped(guess.values)
        if not np.array_equal(np.isfinite(self.shaped(self.expected)), np.isfinite(values)):
            return False
        return bool(np.all(self.ratio(guess) <= self.limit))

    @property
    def exceeds(self) -> npt.NDArray[np.bool_]:
        """Where the subject is not what the replay says, and finite."""
        right = Guess(says="", values=self.expected, sigma=self.sigma)
        return np.asarray(self.ratio(right, more_roundings=0.0) > self.limit)

    def residual(self, guess: Guess) -> float:
        """Return the relative L2 of what is left under ``guess``, over finite values."""
        values = self.shaped(guess.values)
        finite = np.isfinite(self.subject) & np.isfinite(values)
        left = float(np.linalg.norm(self.subject[finite] - values[finite]))
        norms = (float(np.linalg.norm(side[finite])) for side in (values, self.subject))
        return left / max(*norms, math.ulp(0.0)) if left else 0.0

    def scalar(self, e: F64, s: F64 | None = None) -> float:
        """Return the a for which a * e comes nearest to s (the subject), each value in its own sigma."""
        s = self.subject if s is None else s
        e, sigma = self.shaped(e), self.shaped_sigma
        used = np.isfinite(s) & np.isfinite(e) & (e != 0)
        return scalar(e[used], s[used], sigma[used])


def scalar(e: F64, s: F64, sigma: F64) -> float:
    """Return the weighted least-squares a of s = a * e; NaN where e has no value."""
    scaled = e / sigma
    energy = float(scaled @ scaled)
    return float(scaled @ (s / sigma)) / energy if energy else math.nan


def factor_words(value: float) -> str:
    """Return a factor in five digits, and in more where these would make it 1."""
    short = f"{value:.5g}"
    return f"{value:.8g}" if short in ("1", "-1") else short


def open_case(replayer: Replayer, key: Key, rule: Rule, subject: F64, limit: float) -> Case | None:
    """Return the case of a captured stage, ``None`` where it cannot be replayed."""
    try:
        known = replayer.inputs(key)
        found = replayer.evaluate(key, known, (rule,))
    except (WeightsNeeded, NotCaptured):
        return None
    return Case(
        replayer=replayer,
        key=key,
        rule=rule,
        subject=subject,
        limit=limit,
        known=known,
        expected=found.values[0],
        sigma=found.sigma,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """One row of the table of causes.

    Attributes:
        name: the cause.
        stages: the stages it applies to.
        where: which of these, where that depends on how a model computes them; ``None`` for all.
        guesses: computes those stages under the hypothesis, the likeliest first.
        multiplies: whether it multiplies with the weights again.
        mixed: whether it is one of a mixture of experts, within which only those and changes of the result
            hold.

    """

    name: str
    guesses: Callable[[Case], Iterator[Guess]]
    stages: Sequence[str] = field(default=tuple(STAGES))
    where: Callable[[Case], bool] | None = None
    multiplies: bool = False
    mixed: bool = False

    @property
    def of_all_stages(self) -> bool:
        """Whether it is a change of the result that any stage may have."""
        return self.where is None and tuple(self.stages) == tuple(STAGES)

    def applies(self, case: Case) -> bool:
        """Whether it is one of this stage."""
        return case.name in self.stages and (self.where is None or self.where(case))


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeTensor:
    """A weight as a hypothesis has it, decoded row by row from another."""

    name: str
    type: str
    shape: tuple[int, ...]
    decode: Callable[[int, int], FloatArray]

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop``."""
        return self.decode(start, stop)


_OF_EXPERTS = (*EXPERT_ROLES, *EXPERT_BIASES)


def reweighed(case: Case, changed: Mapping[str, Tensor]) -> Weights:
    """Return the weights with other tensors in some roles, all as they are used: nothing is left to undo."""
    weights = case.weights
    roles = (
        each
        for role in weights.names
        for each in (_each_expert(role, case.geometry) if role in _OF_EXPERTS else (role,))
    )
    tensors: dict[str, Any] = {
        role: tensor for role in roles if (tensor := weights.find(role, case.layer)) is not None
    }
    return replace(
        weights,
        geometry=replace(weights.geometry, tied=False),
        names={role: f"{role}.{{e}}" if role in _OF_EXPERTS else role for role in weights.names},
        tensors={**tensors, **changed},
        interleaved=False,
        of_checkpoint=False,
    )


def _each_expert(role: str, geometry: Geometry) -> Iterator[str]:
    return (f"{role}.{expert}" for expert in range(geometry.experts))
