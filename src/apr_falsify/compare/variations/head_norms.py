"""What goes wrong in the norm that q and k pass before RoPE: of each head, or over all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.turning import (
    by_its_norm,
    declared,
    fused_part,
    multiplied,
    normed,
    own_norm,
    rms,
    role_of,
)
from apr_falsify.model.blocks import HEAD

STAGES = ("q_norm", "k_norm", "q_post_rope", "k_post_rope")

_Norm = Callable[[F64, F64, float], F64]

_FORMS: Mapping[str, _Norm] = {
    "no norm before RoPE": lambda x, w, eps: x,
    "the weight of the norm before RoPE ignored": lambda x, w, eps: rms(x, np.ones_like(w), eps),
    "1 + weight in the norm before RoPE": lambda x, w, eps: rms(x, 1 + w, eps),
    "epsilon 1e-5 in the norm before RoPE": lambda x, w, eps: rms(x, w, 1e-5),
    "epsilon 1e-6 in the norm before RoPE": lambda x, w, eps: rms(x, w, 1e-6),
}
"""A wrong norm -> its formula over what is normed, weight and epsilon."""


def other_head_norm(case: Case) -> Iterator[Guess]:
    """Yield other norms of q or k, and the norm after the rotation, in families that have one."""
    x = fused_part(case)
    if own_norm(case) is None or x is None:
        return
    eps, role = case.geometry.norm_eps, role_of(case)
    weight, other = (case.vector(f"{each}_norm") for each in (role, "kq"["qk".index(role)]))
    for says, norm in _FORMS.items():
        yield _as_stage(case, says, by_its_norm(case, x, _with(norm, weight, eps)))
    yield _over_the_other(case, x, weight)
    if weight.shape == other.shape:
        crossed = normed(case, x, other)
        yield _as_stage(case, "q's norm before RoPE with k's weight, or k's with q's,", crossed)
    if not case.name.endswith("_norm"):
        after = multiplied(case, x, declared(case).rotor)
        yield case.guess("the norm after RoPE", normed(case, after, weight))


def measured_epsilon(case: Case) -> Iterator[Guess]:
    """Yield the norm with the epsilon that the subject's scale has: eps = 1 / r^2 - mean(x^2)."""
    x, subject = fused_part(case), _unrotated_subject(case)
    if own_norm(case) is None or x is None or x.shape != subject.shape:
        return
    weight = case.vector(f"{role_of(case)}_norm")
    groups, values = (part.reshape(-1, len(weight)) for part in (x, subject))
    bare = groups * weight
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sum(values * bare, axis=-1) / np.sum(np.square(bare), axis=-1)
        energy = np.mean(np.square(groups), axis=-1)
        eps = 1 / np.square(scale) - energy
    if not np.isfinite(eps).any():
        return
    best = float(eps[np.nanargmin(np.where(np.isfinite(eps), energy, np.nan))])  # where it matters most
    for tried in dict.fromkeys((float(f"{best:.2g}"), best)) if best > 0 else ():
        says = f"epsilon {tried:.3g} in the norm before RoPE"
        values = by_its_norm(case, x, _with(rms, weight, tried))
        yield _as_stage(case, says, values, f"the model declares {case.geometry.norm_eps:g}")


def _unrotated_subject(case: Case) -> F64:
    """Return the captured stage rotated back."""
    subject = np.nan_to_num(case.subject)
    if case.name.endswith("_norm"):
        return subject
    own = declared(case)
    back = np.asarray(np.conj(own.rotor[-len(subject) :]) / own.factor**2, dtype=np.complex128)
    return multiplied(case, subject, back)


def _as_stage(case: Case, says: str, values: F64, instead: str = "") -> Guess:
    """Return what the stage is where its norm gives ``values``: rotated, or as it is."""
    if not case.name.endswith("_norm"):
        values = multiplied(case, values, declared(case).rotor)
    return case.guess(says, values, instead=instead)


def _over_the_other(case: Case, x: F64, weight: F64) -> Guess:
    """Yield the norm over all heads where it is of each, and of each where it is over all."""
    node, size = own_norm(case), case.geometry.head_dim
    assert node is not None
    heads, eps = x.reshape(len(x), -1, size), case.geometry.norm_eps
    if node["over"] == HEAD:
        mean = np.mean(np.square(heads), axis=(-1, -2), keepdims=True)
        values = heads / np.sqrt(mean + eps) * weight
        return _as_stage(case, "the norm before RoPE over all heads together", values.reshape(x.shape))
    values = rms(heads, weight.reshape(-1, size), eps)
    return _as_stage(case, "the norm before RoPE of each head by itself", values.reshape(x.shape))


def _with(norm: _Norm, weight: F64, eps: float) -> Callable[[F64], F64]:
    return lambda x: norm(x, weight, eps)
