"""How q and k are turned, as causes compute it: the rotation, and what is to be rotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.common import parts
from apr_falsify.model.blocks import HEAD
from apr_falsify.model.families import graph_of
from apr_falsify.model.graph import Node
from apr_falsify.operators.rotary import angle_errors
from apr_falsify.operators.rotation import rope_frequencies

Complex = npt.NDArray[np.complex128]

ROTATED = ("q_post_rope", "k_post_rope")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How a rotation is done.

    Attributes:
        frequencies: angle per position, [pairs].
        positions: [tokens].
        factor: on cos and sin.

    """

    frequencies: F64
    positions: F64
    factor: float = 1.0

    @property
    def rotor(self) -> Complex:
        """What each pair is multiplied with: [tokens, 1, pairs]."""
        return np.asarray(np.exp(1j * np.outer(self.positions, self.frequencies)) * self.factor)[:, None, :]

    @property
    def angle_errors(self) -> F64:
        """The rounding of its angles, [tokens, pairs], in unit roundoffs."""
        turning = np.where(self.frequencies != 0, np.abs(self.frequencies), 1.0)
        return angle_errors(self.positions, self.frequencies, np.log(turning))


def rms(heads: F64, weight: F64, eps: float) -> F64:
    """Return ``heads`` through an RMSNorm over the last axis."""
    return np.asarray(heads / np.sqrt(np.mean(np.square(heads), axis=-1, keepdims=True) + eps) * weight)


def role_of(case: Case) -> str:
    """Return ``q`` or ``k``."""
    return case.name[0]


def fused_part(case: Case) -> F64 | None:
    """Return q or k as the projection gave it, ``None`` where that is not known."""
    fused = case.inputs.get("qkv_bias")
    if fused is None:
        fused = case.captured("qkv_bias" if case.geometry.qkv_bias else "qkv_matmul")
    return None if fused is None else fused[:, parts(case)[role_of(case)]]


def unrotated(case: Case) -> F64:
    """Return what is to be rotated: [S, heads * D], after the norm of q or k where a family has it."""
    captured = case.inputs.get(f"{role_of(case)}_norm")
    if captured is not None:
        return captured
    x = case.inputs["qkv_bias"][:, parts(case)[role_of(case)]]
    return x if own_norm(case) is None else normed(case, x, case.vector(f"{role_of(case)}_norm"))


def own_norm(case: Case) -> Node | None:
    """Return the norm that q or k passes before it is rotated, ``None`` where there is none."""
    return graph_of(case.geometry).at(case.layer).get(f"{role_of(case)}_norm")


def normed(case: Case, x: F64, weight: F64) -> F64:
    """Return q or k [S, heads * D] after its own norm with another weight: of each head, or over all."""
    return by_its_norm(case, x, lambda heads: rms(heads, weight, case.geometry.norm_eps))


def by_its_norm(case: Case, x: F64, norm: Callable[[F64], F64]) -> F64:
    """Return ``x`` [S, heads * D] through a norm over each head, or over all, as the model's goes."""
    node = own_norm(case)
    by_head = node is None or node["over"] == HEAD
    heads = x.reshape(len(x), -1, case.geometry.head_dim) if by_head else x
    return np.asarray(norm(heads)).reshape(x.shape)


def declared(case: Case) -> Turn:
    """Return the rotation that the model declares."""
    frequencies, factor = rope_frequencies(case.rope, case.geometry.head_dim)
    return Turn(
        frequencies=frequencies, positions=np.arange(len(case.expected), dtype=np.float64), factor=factor
    )


def paired(x: F64, head_dim: int) -> Complex:
    """Return [S, heads * D], half-split, as complex [S, heads, D / 2]."""
    halves = x.reshape(len(x), -1, 2, head_dim // 2)
    return halves[:, :, 0] + 1j * halves[:, :, 1]


def flat(z: Complex) -> F64:
    """Return complex [S, heads, D / 2] as [S, heads * D], half-split."""
    return np.stack((z.real, z.imag), axis=2).reshape(len(z), -1)


def turned(
    case: Case, says: str, turn: Turn, instead: str = "", name: str = "", x: F64 | None = None
) -> Guess:
    """Return the stage under another rotation, of ``x`` where that is not what is to be rotated."""
    z = paired(unrotated(case) if x is None else x, case.geometry.head_dim) * turn.rotor
    return case.guess(says, flat(z), angle_errors=turn.angle_errors, instead=instead, name=name)
