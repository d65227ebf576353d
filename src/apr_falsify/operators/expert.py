"""What one expert of a mixture makes between its projections: gate and up, clamped or not, and their biases.

gpt-oss (OpenAI 2025) clamps both, has a steeper sigmoid, and adds 1 to up: ``g sigmoid(1.702 g) (u + 1)``.
"""

from __future__ import annotations

import numpy as np

from apr_falsify.model.shape import EXPERT_ROLES, Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.feedforward import (
    FUNCTIONS,
    activated,
    activation_imports,
    activation_text,
    multiplied,
)
from apr_falsify.operators.operator import Lines
from apr_falsify.operators.roundoff import FEW, UNIT, Array, Known, lost, squared, stored
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.site import Site


def bias_of(role: str, geometry: Geometry) -> str | None:
    """Return the role of the bias beside the matrix ``role`` of a mixture, ``None`` where it has none."""
    kind, dot, expert = role.partition(".")
    biased = geometry.expert_bias and kind in ("router", *EXPERT_ROLES)
    return f"{kind}_bias{dot}{expert}" if biased else None


def projected_by(site: Site, x: Array, role: str) -> Array:
    """Return ``x`` through a projection of a mixture, with its bias where it has one."""
    bias = bias_of(role, site.geometry)
    product = site.project(x, role)
    return product if bias is None else np.asarray(product + site.vector(bias))


def hidden_of(gate: Array, up: Array, geometry: Geometry) -> Array:
    """Return what an expert's down projection takes: the activated gate times up."""
    gate, up = _clamped(gate, up, geometry)
    shifted = up + up.dtype.type(geometry.expert_shift) if geometry.expert_shift else up
    return np.asarray(_active(gate, geometry) * shifted)


def _clamped(gate: Array, up: Array, geometry: Geometry) -> tuple[Array, Array]:
    limit = geometry.expert_limit
    return (gate, up) if limit is None else (np.minimum(gate, limit), np.clip(up, -limit, limit))


def _active(gate: Array, geometry: Geometry) -> Array:
    if geometry.expert_alpha == 1.0:
        return FUNCTIONS[geometry.activation](gate)
    return np.asarray(gate * sigmoid(gate * gate.dtype.type(geometry.expert_alpha)))


def known_hidden_of(gate: Known, up: Known, geometry: Geometry, store: float) -> Known:
    """Return the same with the rounding that it carries; a clamp lets no more of it through."""
    values = _clamped(gate.value, up.value, geometry)
    gate, up = Known(value=f64(values[0]), sigma=gate.sigma), Known(value=f64(values[1]), sigma=up.sigma)
    value = f64(_active(gate.value, geometry))
    active = Known(value=value, sigma=np.sqrt(_active_variance(gate, value, geometry, store)))
    if geometry.expert_shift:
        raised = up.value + geometry.expert_shift
        up = Known(value=raised, sigma=np.sqrt(up.variance + stored(raised, max(store, UNIT))))
    product = active.value * up.value
    return Known(value=product, sigma=np.sqrt(multiplied(active, up, product, store)))


def _active_variance(gate: Known, y: Array, geometry: Geometry, store: float) -> Array:
    if geometry.expert_alpha == 1.0:
        return activated(gate, f64(y), geometry.activation, store)
    # The sigmoid's argument and the sigmoid are stored; the slope is that of silu, at most 1.1.
    unit, argument = max(store, UNIT), np.abs(gate.value) * geometry.expert_alpha
    own = squared(f64(y * unit * (argument + FEW))) + stored(f64(y), store) + lost(store, gate.value)
    return np.asarray(own + 1.21 * gate.variance)


def hidden_text(geometry: Geometry, gate: str, up: str) -> Lines:
    """Return the same as lines of NumPy, into ``hidden``."""
    lines, limit = [*activation_imports(geometry)], geometry.expert_limit
    lines += [f"gate, up = {gate}, {up}"]
    if limit is not None:
        lines += [f"gate, up = np.minimum(gate, {limit}), np.clip(up, -{limit}, {limit})"]
    active = activation_text("gate", geometry)
    if geometry.expert_alpha != 1.0:
        active = f"gate / (1 + np.exp(-{geometry.expert_alpha} * gate))"
    shifted = f"(up + {geometry.expert_shift})" if geometry.expert_shift else "up"
    return (*lines, f"hidden = {active} * {shifted}")
