"""Every stage once more, from the same trace's own earlier stages: what each stage should have been.

A replay is f64 throughout. Where an earlier stage was not captured, it is computed from what feeds it,
and the rounding that the runtime must have done there is carried along (``compare.floor``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import projected_through, rounding
from apr_falsify.compare.fused import attended
from apr_falsify.compare.layout import canonical, only_data
from apr_falsify.compare.operands import Operands
from apr_falsify.compare.recorded_formats import as_operands
from apr_falsify.compare.site import NotCaptured, ReplaySite, WeightsNeeded
from apr_falsify.formats.weights import Weights
from apr_falsify.model.graph import Node
from apr_falsify.model.shape import EXPERT_ROLES, Geometry
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.model.wiring import node_of, supplier_of
from apr_falsify.numerics.arithmetic import FORMATS, Format
from apr_falsify.numerics.operand_rules import AND, PLAIN, Operation, Rule, by_pass, expected_rule
from apr_falsify.operators.heads import values_of
from apr_falsify.operators.linear import weights_of
from apr_falsify.operators.operator import Array
from apr_falsify.operators.replayed import MixtureOperator, replay_mixture
from apr_falsify.operators.roundoff import UNIT, Known, lost
from apr_falsify.operators.roundoff import stored as rounded
from apr_falsify.operators.table import boundary_of, compute, kept_by, operation_of, operator_of, span_from
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why a stage could not be replayed.

    Attributes:
        what: what is not there.
        remedy: the command that would supply it.

    """

    what: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a stage should have been.

    Attributes:
        values: [rules, *canonical shape], f64: one per rule.
        sigma: [*canonical shape]: the root mean square of the rounding that f32 sums bring.
        sigmas: the same under each rule, where these differ in what they round.
        composed: the stages that were computed because they were not captured.
        weight_type: the number format of the projection's weights, ``""`` where there is none.
        skipped: of ``attention`` with values that are not finite: the plain result of a runtime that
            passes over the keys of weight zero, where 0 * NaN would be NaN; else ``None``.

    """

    values: F64
    sigma: F64
    composed: tuple[str, ...]
    weight_type: str
    skipped: F64 | None = None
    sigmas: tuple[F64, ...] = ()

    def sigma_under(self, index: int) -> F64:
        """Return the rounding under the rule with this index."""
        return self.sigmas[index] if self.sigmas else self.sigma


def is_mixed(key: Key, geometry: Geometry) -> bool:
    """Whether a stage is part of a mixture of experts."""
    return isinstance(operator_of(node_of(key.stage, geometry, key.layer)), MixtureOperator)


def roles_of(span: tuple[Node, ...]) -> tuple[str, ...]:
    """Return the roles of the weights that a span multiplies with; of a mixture, those of one expert."""
    products = (node for node in span if operator_of(node).operation is Operation.PROJECTION)
    roles = tuple(role for node in products for role in weights_of(node))
    if set(EXPERT_ROLES).isdisjoint(roles):
        return roles
    return tuple(f"{role}.0" for role in EXPERT_ROLES)


RECOMPUTED: Mapping[str, tuple[str, ...]] = {"hf": ("qkv_matmul",)}
"""Runtime -> stages that its capture computes beside the forward pass: q, k, v add their bias within."""


class Replayer:
    """Replays the stages of one trace.

    Args:
        trace: the trace.
        weights: the weights to replay with, ``None`` where there are none.
        store: unit roundoff of the format in which the runtime keeps its stages.
        stated: what is stated of its arithmetic, beyond what the runtime is known for.

    """

    def __init__(
        self,
        trace: Trace,
        weights: Weights | None,
        store: float,
        stated: Mapping[Operation, Rule] | None = None,
    ) -> None:
        self.trace = trace
        self.weights = weights
        self.store = store
        self.stated = stated
        self._sigmas: dict[Key, F64] = {}

    def captured(self, key: Key) -> F64 | None:
        """Return a captured stage in canonical shape, f64; a last-token stage keeps a token axis of 1.

        The rows of padding are there: others may have seen them.
        """
        values = self._stored(key)
        return None if values is None else values.astype(np.float64)

    def judged(self, key: Key) -> F64 | None:
        """Return a captured stage to be judged, f64: zero where it is no data."""
        values = self.stored(key)
        return None if values is None else values.astype(np.float64)

    def stored(self, key: Key) -> npt.NDArray[Any] | None:
        """Return a captured stage to be judged, in the format it is stored in: zero where it is no data."""
        values = self._stored(key)
        if values is None:
            return None
        return only_data(values, key, (), self.trace.geometry, self.trace.passes)

    def _stored(self, key: Key) -> npt.NDArray[Any] | None:
        array = self.trace.stages.get(key)
        if array is None:
            return None
        values = canonical(array, key, self.trace.geometry, self.trace.passes)
        if Layout.LAST_TOKEN in array.layout and STAGES[key.stage].axes[0] == "tokens":
            values = values[None]
        return values

    def replay(self, key: Key, rules: tuple[Rule, ...]) -> Replay | Missing:
        """Replay one stage under each of ``rules``."""
        composed: list[str] = []
        try:
            inputs = self._inputs(key, composed, self._rows(key))
            found = self._evaluated(key, inputs, rules, (*composed, *self._steps_within(key)))
        except WeightsNeeded:
            return Missing(what="the weights", remedy="--oracle MODEL (bisect), --weights MODEL (compare)")
        except NotCaptured as missing:
            layer, name = missing.key
            place = "" if layer is None else f" of layer {layer}"
            place += " for every token" if missing.key in self.trace.stages else ""
            return Missing(what=f"{name}{place}", remedy=f"capture {name}{place} too")
        if key.stage in RECOMPUTED.get(self.trace.provenance.runtime, ()):
            self._sigmas = {key: found.sigma}  # the next stage will ask for it; older ones are done with
        return found

    def weight_type(self, key: Key) -> str:
        """Return the number format of a projection's weights, ``""`` where that is not known."""
        if self.weights is None:
            return ""
        tensors = (self.weights.find(role, key.layer) for role in roles_of(self.span(key)))
        return _common(tensor.type for tensor in tensors if tensor is not None)

    def span(self, key: Key) -> tuple[Node, ...]:
        """Return the nodes that a stage is computed through: inner ones not captured, and its own."""
        layer, name = key
        captured = [stage for at, stage in self.trace.stages if at == layer]
        return span_from(name, self.trace.geometry, layer, captured)

    def _steps_within(self, key: Key) -> list[str]:
        """Return the stages of the closed list that a stage is computed through."""
        return [node.stage for node in self.span(key)[:-1] if not STAGES[node.stage].inner]

    def sources(self, key: Key) -> dict[str, Key]:
        """Return what a stage is computed from: argument -> the stage that supplies it."""
        boundary = boundary_of(self.span(key))
        return {
            name: supplier_of(source, self.trace.geometry, key.layer) for name, source in boundary.items()
        }

    def operation(self, key: Key) -> Operation:
        """Return how runtimes hold the operands of a stage."""
        return operation_of(self.span(key))

    def inputs(self, key: Key) -> dict[str, Known]:
        """Return what a stage is computed from, composed where it was not captured.

        Raises:
            WeightsNeeded: something must be composed, and there are no weights.
            NotCaptured: something must be composed that cannot be.

        """
        return self._inputs(key, [], self._rows(key))

    def evaluate(self, key: Key, inputs: Mapping[str, Known], rules: tuple[Rule, ...] = (PLAIN,)) -> Replay:
        """Compute one stage from ``inputs``, whatever they are: what it would be under a hypothesis."""
        return self._evaluated(key, inputs, rules, ())

    def _inputs(self, key: Key, composed: list[str], rows: int) -> dict[str, Known]:
        if any(operator_of(node).over_tokens for node in self.span(key)):
            rows = self.trace.passes.rows
        cached, sources = kept_by(self.span(key)), self.sources(key)
        known = {
            role: self._known(source, composed, len(self.trace.tokens) if role in cached else rows)
            for role, source in sources.items()
        }
        return as_operands(known, self.operation(key), sources, self.trace.provenance.operands)

    def _rows(self, key: Key) -> int:
        """Return of how many tokens a stage was captured: all of them, or the last one."""
        array = self.trace.stages.get(key)
        alone = "tokens" not in STAGES[key.stage].axes or (array and Layout.LAST_TOKEN in array.layout)
        return 1 if alone else self.trace.passes.rows

    def saved_format(self, key: Key) -> Format | None:
        """Return the format that a captured stage was rounded to when it was saved, ``None`` for its own."""
        name = self.trace.provenance.saved_as.get(key.stage)
        return None if name is None or key not in self.trace.stages else FORMATS[name]

    def unit_of(self, key: Key) -> float:
        """Return the unit roundoff of the coarsest format that a captured stage was rounded to."""
        saved = self.saved_format(key)
        return self.store if saved is None else max(self.store, saved.unit_roundoff)

    def inputs_saved(self, key: Key) -> bool:
        """Whether an input of a stage was rounded when it was saved."""
        return any(self.saved_format(source) is not None for source in self.sources(key).values())

    def saved_sigma(self, key: Key, values: F64, sigma: F64 | None) -> F64 | None:
        """Return ``sigma`` of a stage with the rounding that saving its ``values`` brought."""
        saved = self.saved_format(key)
        if saved is None:
            return sigma
        unit = saved.unit_roundoff
        own = np.sqrt(rounded(values, unit) + lost(unit))
        return own if sigma is None else np.hypot(sigma, own)

    def _known(self, key: Key, composed: list[str], rows: int) -> Known:
        values = self.captured(key)
        if values is not None:
            if self._rows(key) < rows:
                return self._with_earlier(key, values, rows)
            if self.saved_format(key) is not None and np.isinf(values).any():
                raise NotCaptured(key)  # finite ones may have been saved so
            return Known(value=values, sigma=self._rounded_later(key, values))
        if key.stage in ("post_ffn_residual", "post_attn_residual"):
            raise NotCaptured(key)  # a residual stream can be composed only by replaying whole layers
        composed += [*self._steps_within(key), key.stage]
        found = self._evaluated(key, self._inputs(key, composed, rows), (self.expected(key),), ())
        return Known(value=found.values[0], sigma=found.sigma)

    def _with_earlier(self, key: Key, values: F64, rows: int) -> Known:
        """Return a captured stage with rows of earlier passes that another run supplied."""
        borrowed = self.trace.borrowed.get(key)
        if borrowed is None or len(borrowed.values) + len(values) != rows:
            raise NotCaptured(key)
        later = self._rounded_later(key, values)
        sigma = np.zeros((rows, values.shape[1]))
        sigma[: len(borrowed.values)] = borrowed.sigma
        sigma[len(borrowed.values) :] = 0.0 if later is None else later
        return Known(value=np.concatenate((borrowed.values, values)), sigma=sigma)

    def expected(self, key: Key) -> Rule:
        """Return the arithmetic in which the runtime is expected to compute a stage."""
        operation = self.operation(key)
        kind = self.weight_type(key) if operation is Operation.PROJECTION else ""
        return expected_rule(self.trace.provenance.runtime, operation, kind, self.stated)

    def is_stated(self, key: Key) -> bool:
        """Whether the arithmetic of a stage's products is stated."""
        operation = self.operation(key)
        parts = (Operation.SCORES, Operation.MIX) if operation is Operation.ATTENTION else (operation,)
        return all(part in (self.stated or {}) for part in parts)

    def _rounded_later(self, key: Key, values: F64) -> F64 | None:
        """Return the rounding that a captured stage meets before it is used, ``None`` where it meets none."""
        later = self._recomputed(key)
        if Layout.UNSCALED in self.trace.stages[key].layout:  # the runtime scales it within its softmax
            later = np.abs(values) * (UNIT / math.sqrt(3))
        return self.saved_sigma(key, values, later)

    def _recomputed(self, key: Key) -> F64 | None:
        """Return the rounding of a captured stage that is not the very tensor the runtime went on with."""
        recomputed = RECOMPUTED.get(self.trace.provenance.runtime, ())
        if key.stage not in recomputed or self.weights is None or self.trace.geometry.kv_latent:
            return None  # latent attention adds no bias, and goes on with what is captured
        if key not in self._sigmas:
            self._sigmas[key] = self._evaluated(
                key, self._inputs(key, [], self._rows(key)), (PLAIN,), ()
            ).sigma
        return self._sigmas[key]

    def _evaluated(
        self, key: Key, inputs: Mapping[str, Known], rules: tuple[Rule, ...], composed: tuple[str, ...]
    ) -> Replay:
        site = self._site(key, inputs, tuple(self.by_pass(rule) for rule in rules))
        span = span_from(key.stage, self.trace.geometry, key.layer, inputs)
        operation, operator = operation_of(span), operator_of(span[-1])
        apart: Sequence[F64] = ()
        if isinstance(operator, MixtureOperator) or span[-1].constants.get("bias_before"):
            site.captured = self.captured(key)
        if isinstance(operator, MixtureOperator):
            if key.stage == "moe_router_indices":  # read where it is used: a guess may have fewer experts
                site.last_weights = self.captured(Key(key.layer, "moe_router"))
            values, sigma = replay_mixture(operator, inputs, site, rules, self.store)
        elif operation is Operation.PROJECTION:
            found, sigma = projected_through(span, inputs, site, self.store)
            values = np.asarray(found, dtype=np.float64)
        elif operation is Operation.ATTENTION:
            values, apart = attended(span, inputs, site, self.operands(key.layer), self.store)
            sigma = apart[0]
        else:
            values, sigma = self._under_each(key, operation, inputs, site)
        saved = self.saved_sigma(key, values[0], sigma)
        assert saved is not None
        each = [self.saved_sigma(key, values[0], one) for one in apart]
        plain = {role: known.value for role, known in inputs.items()}
        return Replay(
            values=values,
            sigma=saved,
            sigmas=tuple(one for one in each if one is not None),
            composed=composed,
            weight_type=_common(site.types),
            skipped=_skipping(plain, site) if operation is Operation.MIX else None,
        )

    def by_pass(self, rule: Rule) -> Rule:
        """Return a rule as the passes of this run have it."""
        return by_pass(rule, self.trace.passes.sizes)

    def _site(self, key: Key, inputs: Mapping[str, Known], rules: tuple[Rule, ...]) -> ReplaySite:
        site = ReplaySite(
            weights=self.weights,
            geometry=self.trace.geometry,
            layer=key.layer,
            tokens=self.trace.tokens,
            rules=rules,
            in_passes=self.trace.passes,
        )
        site.begin(inputs)
        return site

    def _under_each(
        self, key: Key, operation: Operation, inputs: Mapping[str, Known], site: ReplaySite
    ) -> tuple[F64, F64]:
        """Return a stage without a product of weights under each rule, [rules, ...], and its sigma."""
        plain = {role: known.value for role, known in inputs.items()}
        made = [self._computed(key.stage, operation, plain, rule, site) for rule in site.rules]
        values = np.asarray(made[0][None] if len(made) == 1 else np.stack(made), dtype=np.float64)
        sigma = rounding(key.stage, inputs, values[0], site, self.store)
        for rule in site.rules:
            sigma = np.hypot(sigma, self.operands(key.layer).noise(operation, plain, rule, values[0]))
        return values, np.asarray(sigma)

    def _computed(
        self, name: str, operation: Operation, inputs: dict[str, F64], rule: Rule, site: ReplaySite
    ) -> Array:
        operands = self.operands(site.layer)
        values = compute(name, operands.rounded(operation, inputs, rule), site)
        if operation is Operation.SCORES and rule.block_sums and name != "attn_softmax":
            values = values + operands.block_sums(inputs, rule)[0]
        return values

    def operands(self, layer: int | None) -> Operands:
        """Return what holds the operands of a layer's scores and mix as the runtime does."""
        stored = (array for (_, name), array in self.trace.stages.items() if name == "k_post_rope")
        interleaved = any(Layout.INTERLEAVED in array.layout for array in stored)
        return Operands(geometry=self.trace.geometry, layer=layer, interleaved=interleaved)


def _skipping(inputs: Mapping[str, F64], site: ReplaySite) -> F64 | None:
    """Return ``attention`` without the keys of weight zero where a value is not finite, else ``None``."""
    qkv = inputs["qkv_bias"]
    broken = ~np.isfinite(qkv)
    if not values_of(broken, site.geometry).any():
        return None
    result = compute("attention", {**inputs, "qkv_bias": np.where(broken, 0.0, qkv)}, site)
    seen = (inputs["attn_softmax"] > 0).astype(np.float64)
    reached = compute("attention", {"attn_softmax": seen, "qkv_bias": broken.astype(np.float64)}, site)
    return np.where(reached > 0, np.nan, result)


def _common(types: Iterable[str]) -> str:
    return AND.join(dict.fromkeys(types))
