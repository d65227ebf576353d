"""What goes wrong in layers without attention, and in the gate of attention: convolution, states, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.model.mixers import GatedDelta
from apr_falsify.operators.choices import f64
from apr_falsify.operators.feedforward import FUNCTIONS, silu
from apr_falsify.operators.gated_delta import DeltaForm, scanned, sizes_of
from apr_falsify.operators.gated_norm import normed_heads
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.short_conv import convolved, without_padding

GATED = ("attn_gated", "conv_in", "conv_gated", "scan_norm")


def other_convolution(case: Case) -> Iterator[Guess]:
    """Yield the convolution of other tokens, by another kernel, and without its activation or its bias."""
    node, weight = case.span[-1], case.vector("conv")
    kernel = weight.reshape(len(weight), -1)
    bias = case.vector("conv_bias") if "conv_bias" in node.roles else None
    x = f64(without_padding(next(iter(case.inputs.values())), case.replayer.trace.passes))

    def guess(says: str, made: F64, name: str = "", active: bool = True) -> Guess:
        act = node["activation"] if active else ""
        values = FUNCTIONS[act](made) if act else made
        return case.guess(says, f64(values)[-len(case.expected) :], name=name)

    def moved(by: int) -> F64:
        far = np.zeros_like(x)
        if by > 0:
            far[by:] = x[:-by]
        else:
            far[:by] = x[-by:]
        return far

    for by in (1, -1):
        if len(x) > 1:
            words = "the tokens before, itself left out," if by > 0 else "the next token too"
            yield guess(f"a convolution that sees {words}", f64(convolved(moved(by), kernel, bias)))
    yield guess("the convolution's kernel in reverse order", f64(convolved(x, kernel[:, ::-1], bias)))
    if node["activation"]:
        plain = f64(convolved(x, kernel, bias))
        yield guess("no activation after the convolution", plain, active=False)
    if bias is not None:
        yield guess("the convolution's bias left out", f64(convolved(x, kernel)))
    for says, begins in beginnings(case):
        parts = np.split(x, sorted(begins))
        made = [f64(convolved(part, kernel, bias)) for part in parts if len(part)]
        yield guess(f"a convolution {says}", np.concatenate(made), "state")


def is_delta_rule(case: Case) -> bool:
    """Whether the model's layers without attention have a gated delta rule."""
    return isinstance(case.geometry.mixer, GatedDelta)


def is_gated(case: Case) -> bool:
    """Whether a stage is multiplied with a gate in its last step."""
    return case.span[-1].operator != "gate_then_norm"


def beginnings(case: Case) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield where a state may begin anew: with each pass, and at the first token that is wrong."""
    passes = case.replayer.trace.passes
    if len(passes.sizes) > 1:
        yield "whose state is not carried from pass to pass", frozenset(passes.starts[1:])
    wrong = np.flatnonzero(np.any(case.exceeds, axis=-1))
    first = int(wrong[0]) + passes.tokens - len(case.subject) if len(wrong) and passes.plain else 0
    if first > 0:
        yield f"whose state begins anew at token {first}", frozenset({first})
        if 2 * first < passes.tokens:
            each = frozenset(range(first, passes.tokens, first))
            yield f"whose state begins anew every {first} tokens", each


def other_decay(case: Case) -> Iterator[Guess]:
    """Yield the decay by other formulas of a, A and d."""
    (a,) = case.inputs.values()
    log, shift = case.vector("decay_log"), case.vector("decay_shift")
    moved = a + shift
    with np.errstate(over="ignore", invalid="ignore"):
        formulas: Mapping[str, F64] = {
            "the decay with the other sign": -case.expected,
            "the decay without softplus": -np.exp(log) * moved,
            "A for exp(A) in the decay": -log * np.logaddexp(0, moved),
            "exp(-A) for exp(A) in the decay": -np.exp(-log) * np.logaddexp(0, moved),
            "the decay without the shift dt_bias": -np.exp(log) * np.logaddexp(0, a),
            "the decay with the shift added after softplus": -np.exp(log) * (np.logaddexp(0, a) + shift),
            "the decay without exp(A)": -np.logaddexp(0, moved),
            "relu for softplus in the decay": -np.exp(log) * np.maximum(moved, 0),
            "what is kept, exp(g), for g": np.exp(case.expected),
        }
        yield from (case.guess(says, values) for says, values in formulas.items())


def other_beta(case: Case) -> Iterator[Guess]:
    """Yield beta without its sigmoid, and doubled."""
    (b,) = case.inputs.values()
    yield case.guess("beta without its sigmoid", b)
    yield case.guess("beta from 0 to 2", 2 * case.expected)
    yield case.guess(
        "a softmax over the heads for beta", np.exp(b) / np.sum(np.exp(b), axis=-1, keepdims=True)
    )


_FORMS: Mapping[str, DeltaForm] = {
    "q and k not brought to length 1": DeltaForm(normed=False),
    "q not divided by the root of its width": DeltaForm(scaled=False),
    "states that do not decay": DeltaForm(decays=False),
    "states that learn v, not what they lack of it,": DeltaForm(corrects=False),
    "states read before they learn the token": DeltaForm(reads_first=True),
    "value head h reading key head h % H": DeltaForm(shared_by_turns=True),
}
"""A wrong rule -> its form."""


def last_rows(case: Case, says: str, made: F64, name: str = "") -> Guess:
    """Return a guess of what was computed from all tokens, of which the stage has the last ones."""
    return Guess(says=says, values=f64(made)[-len(case.expected) :], sigma=case.sigma, name=name)


def other_rule(case: Case) -> Iterator[Guess]:
    """Yield what is read from states by other rules."""
    sizes, passes = sizes_of(case.geometry), case.replayer.trace.passes
    x = without_padding(case.inputs["conv_out"], passes)
    beta, decay = case.inputs["beta"], case.inputs["decay"]

    guess = partial(last_rows, case)

    with np.errstate(over="ignore", invalid="ignore"):
        for says, form in _FORMS.items():
            yield guess(says, f64(scanned(x, beta, decay, sizes, form)))
        yield guess("beta left out", f64(scanned(x, np.ones_like(beta), decay, sizes)))
        yield guess("states kept by g, not by exp(g),", f64(scanned(x, beta, log_of(decay), sizes)))
        for says, begins in beginnings(case):
            made = f64(scanned(x, beta, decay, sizes, DeltaForm(begins=begins)))
            yield guess(f"a scan {says}", made, "state")


def log_of(decay: F64) -> F64:
    """Return what exp makes ``-g`` of: the decay of a port that multiplies with the size of g."""
    return np.asarray(np.log(np.maximum(-decay, np.finfo(np.float64).tiny)))


def other_gate(case: Case) -> Iterator[Guess]:
    """Yield a gated stage with its gate left out, or used otherwise."""
    if case.name == "scan_norm":
        yield from _of_scan(case)
    elif case.name == "attn_gated":
        x, gate = case.inputs["attention"], case.inputs["attn_gate"]
        yield case.guess("the gate of attention's output left out", x)
        yield case.guess("silu for sigmoid in the gate of attention's output", f64(x * silu(gate)))
        yield case.guess("the gate of attention's output without its sigmoid", x * gate)
    else:
        before, after, x = np.split(case.inputs["conv_proj"], 3, axis=-1)
        x = case.inputs.get("conv_out", x)
        own, other = (after, before) if case.name == "conv_gated" else (before, after)
        yield case.guess("the convolution's gate left out", x)
        yield case.guess("the convolution's other gate", other * x)
        yield case.guess("the sigmoid of the convolution's gate", f64(sigmoid(own)) * x)


def _of_scan(case: Case) -> Iterator[Guess]:
    x, gate, weight = case.inputs["scan_out"], case.inputs["scan_gate"], case.vector("scan_norm")
    eps = case.geometry.norm_eps

    def normed(values: F64, by: F64 = weight) -> F64:
        return f64(normed_heads(values, by, eps))

    active = f64(silu(gate))
    whole = np.mean(np.square(x), axis=-1, keepdims=True)
    heads = np.tile(weight, x.shape[-1] // len(weight))
    guesses: Mapping[str, F64] = {
        "the gate of the norm left out": normed(x),
        "sigmoid for silu in the gate of the norm": normed(x) * f64(sigmoid(gate)),
        "the gate before the norm": normed(x * active),
        "1 + weight in the gated norm": normed(x, 1 + weight) * active,
        "the weight of the gated norm left out": normed(x, np.ones_like(weight)) * active,
        "the gated norm over all heads together": x / np.sqrt(whole + eps) * heads * active,
        "no norm, only the gate,": x * active,
    }
    yield from (case.guess(says, values) for says, values in guesses.items())
