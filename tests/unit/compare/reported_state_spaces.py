"""Bugs that were reported of ports of state spaces, for the table of ``test_reported_bugs.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.exam.seeding import recurrent
from apr_falsify.exam.seeding.scene import Formula, Scene
from apr_falsify.operators.feedforward import silu
from apr_falsify.operators.gated_norm import groups_of, normed_groups
from apr_falsify.operators.operator import Array
from apr_falsify.operators.state_space import ScanForm, sizes_of, stepped


def _normed_over_all(scene: Scene) -> Array:
    return _normed(scene, scene.site.vector("scan_norm"), 1)


def _normed_without_weight(scene: Scene) -> Array:
    return _normed(scene, np.ones_like(scene.site.vector("scan_norm")), groups_of(scene.geometry))


def _normed(scene: Scene, weight: Array, groups: int) -> Array:
    opened = scene.inputs["scan_out"] * silu(scene.inputs["scan_gate"])
    return normed_groups(opened, weight, scene.geometry.norm_eps, groups)


def _steps_without_bounds(scene: Scene) -> Array:
    (logits,) = scene.inputs.values()
    free = replace(sizes_of(scene.geometry), least_step=0.0, largest_step=None)
    return stepped(logits, scene.site.vector("dt_shift"), free)


STATE_SPACES: Mapping[str, tuple[str, int, Formula, str, str, str]] = {
    "the norm behind a state space's gate over all groups": (
        "granitemoehybrid",
        0,
        _normed_over_all,
        "scan_norm",
        "gate-and-norm",
        "the norm over all channels together",
    ),
    "that norm without its weight": (
        "granitemoehybrid",
        0,
        _normed_without_weight,
        "scan_norm",
        "gate-and-norm",
        "the weight of the norm left out",
    ),
    "a state space's norm before its gate": (
        "nemotron_h",
        0,
        recurrent.norm_before_gate,
        "scan_norm",
        "gate-and-norm",
        "the norm before the gate",
    ),
    "steps without their bounds": (
        "nemotron_h-biased-bounded",
        1,
        _steps_without_bounds,
        "dt",
        "step",
        "dt without its bounds",
    ),
    "the steps' bias forgotten": (
        "granitemoehybrid",
        0,
        recurrent.steps_unshifted,
        "dt",
        "step",
        "dt without the bias dt_bias",
    ),
    "A for exp(A)": (
        "nemotron_h",
        0,
        recurrent.unlogged_decay,
        "decay",
        "decay",
        "A for exp(A) in the decay",
    ),
    "the skip D x forgotten": (
        "granitemoehybrid",
        0,
        recurrent.scan_of(ScanForm(skips=False)),
        "scan_out",
        "scan",
        "the skip D x left out",
    ),
    "a state space's state that is not carried": (
        "granitemoehybrid",
        0,
        recurrent.scan_state_lost,
        "scan_out",
        "state",
        "a scan whose state begins anew",
    ),
}
"""Bug -> recipe, layer, how the port computes a stage, that stage, the cause, some of its words."""
