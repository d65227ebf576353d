"""Wrong formulas of layers without attention, and of gated attention."""

from __future__ import annotations

import numpy as np

from apr_falsify.exam.seeding.places import from_input
from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.model.mixers import StateSpace
from apr_falsify.operators import state_space
from apr_falsify.operators.feedforward import silu
from apr_falsify.operators.gated_delta import DeltaForm, scanned, sizes_of
from apr_falsify.operators.gated_norm import groups_of, normed_groups
from apr_falsify.operators.operator import Array
from apr_falsify.operators.state_space import ScanForm


def conv_shifted(scene: Scene) -> Array:
    """Convolve the tokens before each one, without itself."""
    ((name, x),) = scene.inputs.items()
    return scene.fed(**{name: np.concatenate((np.zeros_like(x[:1]), x[:-1]))})


def decay_sign(scene: Scene) -> Array:
    """Let states grow as they should decay."""
    return np.asarray(-scene.right())


def without_softplus(scene: Scene) -> Array:
    """Take a + d itself for its softplus."""
    (a,) = scene.inputs.values()
    log, shift = (scene.site.vector(role) for role in ("decay_log", "decay_shift"))
    return np.asarray(-np.exp(log) * (a + shift), dtype=a.dtype)


def state_lost(scene: Scene) -> Array:
    """Begin anew in the middle of the run, as a chunk does whose state is not carried."""
    form = DeltaForm(begins=frozenset({scene.tokens // 2}))
    x, beta, decay = (scene.inputs[name] for name in ("conv_out", "beta", "decay"))
    return scanned(x, beta, decay, sizes_of(scene.geometry), form)


def steps_unbound(scene: Scene) -> Array:
    """Take d + bias itself for the softplus of it."""
    (d,) = scene.inputs.values()
    return np.asarray(d + scene.site.vector("dt_shift"), dtype=d.dtype)


def steps_unshifted(scene: Scene) -> Array:
    """Forget the bias of the steps."""
    (d,) = scene.inputs.values()
    return state_space.stepped(d, np.zeros_like(scene.site.vector("dt_shift")), _space(scene))


def unlogged_decay(scene: Scene) -> Array:
    """Take A itself, which the checkpoint holds as a logarithm."""
    (dt,) = scene.inputs.values()
    return np.asarray(-scene.site.vector("decay_log") * dt, dtype=dt.dtype)


def scan_of(form: ScanForm) -> Formula:
    """Scan by another form."""

    def scan(scene: Scene) -> Array:
        values, dt, decay = (scene.inputs[name] for name in ("conv_out", "dt", "decay"))
        skip = scene.site.vector("scan_skip")
        return state_space.scanned(values, dt, decay, skip, _space(scene), form)

    return scan


def scan_state_lost(scene: Scene) -> Array:
    """Begin anew in the middle of the run, as a chunk does whose state is not carried."""
    return scan_of(ScanForm(begins=frozenset({scene.tokens // 2})))(scene)


def norm_before_gate(scene: Scene) -> Array:
    """Norm what the scan makes, and gate it then."""
    x, gate = scene.inputs["scan_out"], scene.inputs["scan_gate"]
    weight, eps = scene.site.vector("scan_norm"), scene.geometry.norm_eps
    return np.asarray(normed_groups(x, weight, eps, groups_of(scene.geometry)) * silu(gate))


def _space(scene: Scene) -> StateSpace:
    return state_space.sizes_of(scene.geometry)


_DELTA, _SPACE = ("delta rule",), ("state space",)

Row = tuple[str, str, str, str, Formula, tuple[str, ...]]

ROWS: tuple[Row, ...] = (
    (
        "conv-shifted",
        "conv_out",
        "the convolution leaves the token out",
        r"itself left out",
        conv_shifted,
        (),
    ),
    ("decay-sign", "decay", "states grow as they should decay", r"other sign", decay_sign, ()),
    ("decay-softplus", "decay", "no softplus in the decay", r"without softplus", without_softplus, _DELTA),
    ("state-lost", "scan_out", "a chunk's state is not carried", r"begins anew at token", state_lost, _DELTA),
    ("step-softplus", "dt", "no softplus in the step", r"without softplus", steps_unbound, _SPACE),
    ("step-bias", "dt", "the step's bias is forgotten", r"without the bias dt_bias", steps_unshifted, _SPACE),
    ("decay-log", "decay", "A for exp(A)", r"A for exp\(A\)", unlogged_decay, _SPACE),
    ("scan-skip", "scan_out", "D x is forgotten", r"D x left out", scan_of(ScanForm(skips=False)), _SPACE),
    (
        "scan-groups",
        "scan_out",
        "heads take B and C of groups by turns",
        r"group h % G",
        scan_of(ScanForm(shared_by_turns=True)),
        ("state space", "groups of heads"),
    ),
    (
        "scan-state-lost",
        "scan_out",
        "a chunk's state is not carried",
        r"begins anew at token",
        scan_state_lost,
        _SPACE,
    ),
    (
        "norm-before-gate",
        "scan_norm",
        "a state space's norm stands before its gate",
        r"norm before the gate",
        norm_before_gate,
        _SPACE,
    ),
    (
        "attention-gate-left-out",
        "attn_gated",
        "attention's output is not gated",
        r"gate of attention's output left out",
        from_input("attention"),
        (),
    ),
)
"""Faults of the catalogue: name, stage, title, what a good explanation says, the formula, what it needs."""
