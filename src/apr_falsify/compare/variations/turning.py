"""How q and k are rotated, as causes compute it: the rotation, and what is to be rotated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.common import parts
from apr_falsify.model.blocks import HEAD
from apr_falsify.model.families import graph_of
from apr_falsify.model.graph import Node
from apr_falsify.model.rope import Rope
from apr_falsify.operators.rotary import angle_errors
from apr_falsify.operators.rotation import farthest, rope_frequencies

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
    frequencies, factor = frequencies_under(case, case.rope)
    passes = case.replayer.trace.passes
    at = passes.at[passes.tokens - len(case.expected) :]
    return Turn(frequencies=frequencies, positions=at, factor=factor)


def frequencies_under(case: Case, rope: Rope) -> tuple[F64, float]:
    """Return the angle per position of each pair, and the factor on cos and sin, in a run as long as this."""
    return rope_frequencies(rope, case.geometry.head_dim, farthest(case.replayer.trace.passes.at))


def unscaled(rope: Rope) -> Rope:
    """Return ``rope`` without its scaling rule: the same base, over the same share of each head."""
    return Rope(theta=rope.theta, parameters=of_share(rope))


def of_share(rope: Rope) -> dict[str, float]:
    """Return the parameter by which a rotary embedding turns the same share of each head as ``rope``."""
    return {} if rope.share == 1 else {"partial_rotary_factor": rope.share}


def paired(case: Case, x: F64, pairs: int) -> Complex:
    """Return the rotated pairs of each head of [S, heads * D], half-split, as complex [S, heads, pairs]."""
    _, first, second, _ = split_heads(case, x, pairs)
    return np.asarray(first + 1j * second)


def split_heads(case: Case, x: F64, pairs: int) -> list[F64]:
    """Return what stands before the rotated pairs of each head, their halves, and what stands after them."""
    start = case.geometry.first_of(2 * pairs)
    heads = x.reshape(len(x), -1, case.geometry.head_dim)
    return np.split(heads, [start, start + pairs, start + 2 * pairs], axis=-1)


def multiplied(case: Case, x: F64, rotor: Complex) -> F64:
    """Return ``x`` with its pairs, as complex numbers, times ``rotor`` [S, 1, pairs]; the rest as it is."""
    before, first, second, after = split_heads(case, x, rotor.shape[-1])
    z = (first + 1j * second) * rotor
    return np.concatenate((before, z.real, z.imag, after), axis=-1).reshape(x.shape)


def rotated_guess(
    case: Case, says: str, turn: Turn, instead: str = "", name: str = "", x: F64 | None = None
) -> Guess:
    """Return the stage under another rotation, of ``x`` where that is not what is to be rotated."""
    values = multiplied(case, unrotated(case) if x is None else x, turn.rotor)
    return case.guess(says, values, angle_errors=turn.angle_errors, instead=instead, name=name)


def angles(case: Case) -> tuple[F64, F64]:
    """Return the angle by which each pair was rotated and its weight, [S, pairs], over all heads.

    They are the argument of subject / unrotated (Su et al. 2021: pair p at position t is multiplied with
    exp(i * t * f_p)); of a stage whose last token alone was captured, that token's.
    """
    x, s = _pairs_before_and_after(case)
    product = np.sum(s * np.conj(x), axis=1)
    return np.angle(product), np.abs(product)


def positions_of(case: Case) -> F64:
    """Return where the captured tokens stand by right."""
    return declared(case).positions[-len(case.subject) :]


def length(case: Case) -> float | None:
    """Return how much longer the rotated pairs are than what was rotated."""
    before, after = (float(np.sum(np.square(np.abs(z)))) for z in _pairs_before_and_after(case))
    return math.sqrt(after / before) if before > 0 and math.isfinite(after) else None


def _pairs_before_and_after(case: Case) -> tuple[Complex, Complex]:
    pairs = len(declared(case).frequencies)
    return (
        paired(case, case.shaped(unrotated(case)), pairs),
        paired(case, np.nan_to_num(case.subject), pairs),
    )
