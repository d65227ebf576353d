"""Wrong formulas of layers without attention, and of gated attention."""

from __future__ import annotations

import numpy as np

from apr_falsify.exam.seeding.places import from_input
from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.operators.gated_delta import DeltaForm, scanned, sizes_of
from apr_falsify.operators.operator import Array


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


Row = tuple[str, str, str, str, Formula]

ROWS: tuple[Row, ...] = (
    ("conv-shifted", "conv_out", "the convolution leaves the token out", r"itself left out", conv_shifted),
    ("decay-sign", "decay", "states grow as they should decay", r"other sign", decay_sign),
    ("decay-softplus", "decay", "no softplus in the decay", r"without softplus", without_softplus),
    ("state-lost", "scan_out", "a chunk's state is not carried", r"begins anew at token", state_lost),
    (
        "attention-gate-left-out",
        "attn_gated",
        "attention's output is not gated",
        r"gate of attention's output left out",
        from_input("attention"),
    ),
)
"""Faults of the catalogue: name, stage, title, what a good explanation says, the formula."""
