"""What goes wrong in a state space (Mamba-2): its steps, their decay, the scan, the norm behind its gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.recurrent import beginnings, last_rows, log_of
from apr_falsify.model.mixers import StateSpace
from apr_falsify.operators.choices import f64
from apr_falsify.operators.decay import softplus
from apr_falsify.operators.feedforward import silu
from apr_falsify.operators.gated_norm import normed_groups, normed_heads
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.short_conv import without_padding
from apr_falsify.operators.state_space import ScanForm, scanned, sizes_of, stepped


def is_state_space(case: Case) -> bool:
    """Whether the model's layers without attention have a state space."""
    return isinstance(case.geometry.mixer, StateSpace)


def other_step(case: Case) -> Iterator[Guess]:
    """Yield the steps by other formulas of what is projected and of the bias."""
    (d,) = case.inputs.values()
    shift, sizes = f64(case.vector("dt_shift")), sizes_of(case.geometry)
    moved = d + shift
    free = f64(softplus(moved))
    formulas: Mapping[str, F64] = {
        "dt without softplus": moved,
        "dt without the bias dt_bias": f64(stepped(d, np.zeros_like(shift), sizes)),
        "dt with the bias dt_bias twice": f64(stepped(moved, shift, sizes)),
        "dt with the bias dt_bias taken off": f64(stepped(d, -shift, sizes)),
        "dt with the bias dt_bias added after softplus": f64(softplus(d)) + shift,
        "dt without its bounds": free,
        "dt raised to 0.001": np.maximum(free, 0.001),
        "dt held from 0.001 to 0.1": np.clip(free, 0.001, 0.1),
        "softplus twice for dt": f64(softplus(free)),
        "relu for softplus in dt": np.maximum(moved, 0),
        "a sigmoid for softplus in dt": f64(sigmoid(moved)),
        "exp for softplus in dt": np.exp(np.minimum(moved, 80)),
    }
    yield from (case.guess(says, values) for says, values in formulas.items())


def other_decay(case: Case) -> Iterator[Guess]:
    """Yield the decay by other formulas of dt and A."""
    (dt,) = case.inputs.values()
    log = f64(case.vector("decay_log"))
    with np.errstate(over="ignore", invalid="ignore"):
        formulas: Mapping[str, F64] = {
            "the decay with the other sign": -case.expected,
            "A for exp(A) in the decay": -log * dt,
            "A for -exp(A) in the decay": log * dt,
            "exp(-A) for exp(A) in the decay": -np.exp(-log) * dt,
            "the decay without exp(A)": -dt,
            "the decay without the step dt": np.broadcast_to(-np.exp(log), dt.shape),
            "what is kept, exp(a), for a": np.exp(case.expected),
        }
        yield from (case.guess(says, values) for says, values in formulas.items())


_FORMS: Mapping[str, ScanForm] = {
    "the skip D x left out": ScanForm(skips=False),
    "the step dt left out of what states take in": ScanForm(stepped=False),
    "states that do not decay": ScanForm(decays=False),
    "B and C taken for each other": ScanForm(exchanged=True),
    "states read before they take the token in": ScanForm(reads_first=True),
    "head h using B and C of group h % G": ScanForm(shared_by_turns=True),
}
"""A wrong scan -> its form."""


def other_scan(case: Case) -> Iterator[Guess]:
    """Yield what is read from states by other scans."""
    sizes, passes = sizes_of(case.geometry), case.replayer.trace.passes
    values = without_padding(case.inputs["conv_out"], passes)
    dt, decay, skip = case.inputs["dt"], case.inputs["decay"], f64(case.vector("scan_skip"))
    rows = len(case.expected)
    x = values[-rows:, : sizes.channels].reshape(rows, sizes.heads, -1)

    guess = partial(last_rows, case)

    def added(factor: F64) -> F64:
        """Return the scan with D x times a further factor [S, H] or [H]."""
        more = x * (skip * (factor - 1))[..., None]
        return case.expected + more.reshape(rows, -1)

    with np.errstate(over="ignore", invalid="ignore"):
        for says, form in _FORMS.items():
            yield guess(says, f64(scanned(values, dt, decay, skip, sizes, form)))
        yield guess("D for D x", case.expected + ((1 - x) * skip[:, None]).reshape(rows, -1))
        yield guess("1 for D", f64(scanned(values, dt, decay, np.ones_like(skip), sizes)))
        yield guess("D dt x for D x", added(dt[-rows:]))
        yield guess("states kept by a, not by exp(a),", f64(scanned(values, dt, log_of(decay), skip, sizes)))
        for says, begins in beginnings(case):
            made = f64(scanned(values, dt, decay, skip, sizes, ScanForm(begins=begins)))
            yield guess(f"a scan {says}", made, "state")


def other_norm(case: Case) -> Iterator[Guess]:
    """Yield the norm behind the gate with the gate after it, left out, or over other channels."""
    x, gate, weight = case.inputs["scan_out"], case.inputs["scan_gate"], f64(case.vector("scan_norm"))
    eps, sizes = case.geometry.norm_eps, sizes_of(case.geometry)
    active, opened = f64(silu(gate)), f64(x * silu(gate))

    def normed(values: F64, groups: int = sizes.groups, by: F64 = weight) -> F64:
        return f64(normed_groups(values, by, eps, groups))

    heads = f64(normed_heads(opened, np.ones(sizes.head_dim), eps)) * weight
    guesses: Mapping[str, F64] = {
        "the norm before the gate": normed(x) * active,
        "the norm, over all channels together, before the gate": normed(x, 1) * active,
        "the gate left out": normed(x),
        "sigmoid for silu in the gate": normed(f64(x * sigmoid(gate))),
        "the gate without silu": normed(x * gate),
        "the norm over all channels together": normed(opened, 1),
        "the norm over each head": heads,
        "1 + weight in the norm": normed(opened, by=1 + weight),
        "the weight of the norm left out": normed(opened, by=np.ones_like(weight)),
        "no norm, only the gate,": opened,
    }
    yield from (case.guess(says, values) for says, values in guesses.items())
