"""What goes wrong in the experts of a mixture: the shared one, one of the others, or the sum of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from apr_falsify.compare.replay import Replayer, is_mixed
from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words, reweighed
from apr_falsify.compare.variations.routing import is_routed
from apr_falsify.formats.tensors import PlainTensor, Tensor
from apr_falsify.model.shape import EXPERT_ROLES
from apr_falsify.model.stages import Key
from apr_falsify.operators.choices import f64
from apr_falsify.operators.roundoff import Known
from apr_falsify.operators.routing import as_experts, by_expert

STAGES = ("ffn_out", "moe_ffn_out")
"""The stages that are sums of experts."""


def is_mixture(case: Case) -> bool:
    """Whether a stage is a sum of experts."""
    return is_mixed(case.key, case.geometry)


def has_own_form(case: Case) -> bool:
    """Whether what an expert computes has constants or biases that a port may leave out."""
    g = case.geometry
    plain = g.expert_limit is None and g.expert_alpha == 1.0 and not g.expert_shift
    return is_mixture(case) and not (plain and not g.expert_bias and not g.weighted_input)


def other_form(case: Case) -> Iterator[Guess]:
    """Yield the stage with a constant of the experts' formula, or their biases, left out."""
    geometry = case.geometry
    left_out: Mapping[str, Mapping[str, Any]] = {
        "no clamp of gate and up in the experts": {"expert_limit": None},
        f"the {geometry.expert_alpha:.4g} within the experts' sigmoid left out": {"expert_alpha": 1.0},
        f"up without the {geometry.expert_shift:.4g} added": {"expert_shift": 0.0},
        "the experts' biases left out": {"expert_bias": False},
        "the router's weights applied to what the experts make, not to what they are given": {
            "weighted_input": False
        },
        "plain silu(gate) * up in the experts": {
            "expert_limit": None,
            "expert_alpha": 1.0,
            "expert_shift": 0.0,
        },
    }
    for says, changed in left_out.items():
        if any(getattr(geometry, name) != value for name, value in changed.items()):
            yield case.evaluated(says, geometry=replace(geometry, **changed))
    if geometry.expert_bias:
        yield case.evaluated(
            "gate and up as the two halves of what holds them in turn",
            weights=reweighed(case, _halves(case)),
        )


def _halves(case: Case) -> Mapping[str, Tensor]:
    """Return gate and up of every expert as they are where columns that alternate are cut in the middle."""
    found: dict[str, Tensor] = {}
    for expert in range(case.geometry.experts):
        for suffix in ("", "_bias"):
            gate, up = (f"{role}{suffix}.{expert}" for role in EXPERT_ROLES[:2])
            tensors = [case.weights.tensor(role, case.layer) for role in (gate, up)]
            values = [tensor.rows(0, tensor.shape[0]) for tensor in tensors]
            in_turn = np.stack(values, axis=1).reshape(-1, *values[0].shape[1:])
            for role, half in zip((gate, up), np.split(in_turn, 2), strict=True):
                found[role] = PlainTensor(name=role, type="f32", data=np.asarray(half, dtype=np.float32))
    return found


def has_shared(case: Case) -> bool:
    """Whether every token is given to one expert besides."""
    return is_mixture(case) and case.geometry.shared_intermediate > 0


def _routed_part(case: Case) -> Guess:
    """Return the stage without its shared expert."""
    alone = replace(case.geometry, shared_intermediate=0, shared_gated=False)
    return case.evaluated("the shared expert left out", geometry=alone)


def other_shared(case: Case) -> Iterator[Guess]:
    """Yield the stage with the shared expert left out, or used otherwise."""
    routed = _routed_part(case)
    yield routed
    geometry = case.geometry
    if geometry.shared_gated:
        says = "the shared expert without the sigmoid of its gate"
        yield case.evaluated(says, geometry=replace(geometry, shared_gated=False))
    shared = case.expected - routed.values
    if geometry.routed_scale != 1.0:
        scaled = case.expected + (geometry.routed_scale - 1) * shared
        says = f"the shared expert times {geometry.routed_scale:.6g}, the scale of the routed ones,"
        yield Guess(says=says, values=scaled, name="routed-scale")
    yield Guess(
        says="the shared expert alone, without the routed ones,", values=shared, name="routed-experts"
    )
    yield Guess(says="the shared expert added twice", values=case.expected + shared)


def measured_part(case: Case) -> Iterator[Guess]:
    """Yield the stage with its routed part, or its shared one, times the measured factor."""
    routed = _routed_part(case).values
    shared = case.expected - routed
    for part, rest, words, name in (
        (routed, shared, "the routed experts", "routed-scale"),
        (shared, routed, "the shared expert", "shared-expert"),
    ):
        value = case.scalar(part, case.subject - case.shaped(rest))
        if math.isfinite(value):
            scaled = part is routed and is_routed(case) and case.geometry.routed_scale != 1.0
            says = scale_words(case, value) if scaled else f"{words} x {factor_words(value)}"
            yield Guess(says=says, values=rest + value * part, name=name)


def has_scale(case: Case) -> bool:
    """Whether a model scales the weights of routed experts, and a stage is these or what they alone make."""
    alone = case.name != "ffn_out" or not case.geometry.shared_intermediate
    return is_routed(case) and alone and case.geometry.routed_scale != 1.0


def measured_scale(case: Case) -> Iterator[Guess]:
    """Yield the stage with the measured scale of the routed experts."""
    value = case.scalar(case.expected)
    if math.isfinite(value):
        says = scale_words(case, value)
        yield Guess(says=says, values=value * case.expected, sigma=abs(value) * case.sigma)


def scale_words(case: Case, factor: float) -> str:
    """Return the scale of the routed experts that is ``factor`` times the model's, in words."""
    return f"a scale of {factor_words(factor * case.geometry.routed_scale)} on the routed experts"


def swapped_gate_up(case: Case) -> Iterator[Guess]:
    """Yield the stage with gate and up exchanged in every expert."""
    says = "act(up) * gate in every expert, gate and up swapped,"
    yield case.evaluated(says, weights=reweighed(case, _swapped(case, range(case.geometry.experts))))


def _swapped(case: Case, experts: range) -> Mapping[str, Tensor]:
    gate, up, _ = EXPERT_ROLES
    found = {}
    for expert in experts:
        for role, other in ((gate, up), (up, gate)):
            for suffix in _parts_of(case):
                name = f"{role}{suffix}.{expert}"
                found[name] = case.weights.tensor(f"{other}{suffix}.{expert}", case.layer)
    return found


def one_expert(case: Case) -> Iterator[Guess]:
    """Yield the stage with one expert's part made otherwise, where only its tokens are wrong."""
    weights = _weights(case)
    wrong = np.any(np.atleast_2d(case.exceeds), axis=-1)
    given = weights[-len(wrong) :] != 0
    if not wrong.any():
        return
    for expert in np.flatnonzero(np.all(given == wrong[:, None], axis=0)):
        yield from _of_one(case, weights, int(expert))


def _of_one(case: Case, weights: F64, expert: int) -> Iterator[Guess]:
    part = _part(case, weights, expert)
    yield Guess(says=f"expert {expert} left out", values=case.expected - part)
    swapped = _swapped(case, range(expert, expert + 1))
    says = f"act(up) * gate in expert {expert}, gate and up swapped,"
    yield case.evaluated(says, weights=reweighed(case, swapped))
    for other in (expert - 1, expert + 1):
        if 0 <= other < case.geometry.experts:
            says = f"the weights of expert {other} in place of those of expert {expert}"
            yield case.evaluated(says, weights=reweighed(case, _neighbours(case, expert, other)))
    value = case.scalar(part, case.subject - case.shaped(case.expected - part))
    if math.isfinite(value):
        says = f"expert {expert} x {factor_words(value)}"
        yield Guess(says=says, values=case.expected + (value - 1) * part)


def _neighbours(case: Case, expert: int, other: int) -> Mapping[str, Tensor]:
    return {
        f"{role}{suffix}.{expert}": case.weights.tensor(f"{role}{suffix}.{other}", case.layer)
        for role in EXPERT_ROLES
        for suffix in _parts_of(case)
    }


def _parts_of(case: Case) -> tuple[str, ...]:
    """Return what follows a role of an expert in those of its matrix and of its bias, where it has one."""
    return ("", "_bias") if case.geometry.expert_bias else ("",)


def one_expert_somehow(case: Case) -> Iterator[Guess]:
    """Yield the stage with the tokens of one expert as the subject has them, where only those are wrong."""
    weights = _weights(case)
    wrong = np.any(np.atleast_2d(case.exceeds), axis=-1)
    given = weights[-len(wrong) :] != 0
    if len(wrong) < 2 or not wrong.any() or wrong.all():
        return
    for expert in np.flatnonzero(np.all(given == wrong[:, None], axis=0)):
        values = np.where(wrong[:, None], case.subject, case.shaped(case.expected))
        yield Guess(says=f"only the tokens of expert {expert}: everything else", values=values)


def _part(case: Case, weights: F64, expert: int) -> F64:
    """Return what one expert adds to the stage."""
    own = np.zeros_like(weights)
    own[:, expert] = weights[:, expert]
    key = Key(case.layer, "ffn_out")
    alone = replace(case.geometry, shared_intermediate=0, shared_gated=False)
    trace = replace(case.replayer.trace, geometry=alone)
    x = Known(value=case.known["ffn_norm"].value[-len(own) :])
    known = {"ffn_norm": x, "router_weights": Known(value=own)}
    replayer = Replayer(trace, case.replayer.weights, case.replayer.store)
    return f64(replayer.evaluate(key, known, (case.rule,)).values[0].reshape(case.expected.shape))


def _weights(case: Case) -> F64:
    """Return each token's weights of the experts, [S, X], captured or computed."""
    if "moe_router_indices" in case.known:
        chosen = as_experts(case.known["moe_router_indices"].value, case.geometry)[None]
        return f64(by_expert(chosen, case.known["moe_router"].value[None], case.geometry.experts))
    if "router_weights" in case.known:
        return case.known["router_weights"].value
    known = {name: each for name, each in case.known.items() if name in ("ffn_norm", "router_logits")}
    return f64(case.replayer.evaluate(Key(case.layer, "router_weights"), known, (case.rule,)).values[0])
