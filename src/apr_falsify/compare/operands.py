"""What a runtime holds of the operands of scores and mix before it multiplies them, and what that costs.

A product with weights is in ``compare.products``; here both operands are activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.borrowed import with_uncertain_steps
from apr_falsify.compare.products import block_sum_scores, turning_noise
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import PLAIN, Operation, Rule
from apr_falsify.operators.attention import OPERANDS
from apr_falsify.operators.roundoff import Known
from apr_falsify.operators.softcap import softcap

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """The operands of one layer's scores and mix, as rules hold them.

    Attributes:
        geometry: the model's geometry.
        layer: the layer.
        interleaved: whether the runtime holds rotary pairs side by side, which decides what shares a block.

    """

    geometry: Geometry
    layer: int | None
    interleaved: bool

    def rounded(self, operation: Operation, inputs: dict[str, F64], rule: Rule) -> dict[str, F64]:
        """Apply ``rule`` to the operands, in the order in which the runtime holds them."""
        if rule is PLAIN or operation not in OPERANDS:
            return inputs
        left, right = OPERANDS[operation]
        a, b = self.rotated(inputs, rule) if operation is Operation.SCORES else (inputs[left], inputs[right])
        mixed = operation is Operation.MIX
        size = self.geometry.value_dim if mixed else self.geometry.head_dim
        kept = rule.held_right(b, self.geometry.kv_heads, size)
        return {**inputs, left: rule.left(a), right: kept}

    def rotated(self, inputs: Mapping[str, F64], rule: Rule) -> tuple[F64, F64]:
        """Return q and k in the order and in the rotation in which the runtime holds them."""
        a, b = inputs["q_post_rope"], inputs["k_post_rope"]
        if self.interleaved:
            a, b = self._side_by_side(a), self._side_by_side(b)  # q.k does not depend on a common order
        if rule.rotated:
            size = quantise.rotation_size(self.geometry.head_dim)
            a, b = quantise.hadamard_rotated(a, size), quantise.hadamard_rotated(b, size)
        return a, b

    def _side_by_side(self, x: F64) -> F64:
        halves = x.reshape(len(x), -1, 2, self.geometry.head_dim // 2)
        return halves.swapaxes(-1, -2).reshape(x.shape)

    def with_uncertain_steps(self, part: Operation, known: Known, rule: Rule) -> Known:
        """Return the second operand of a part with the uncertainty that holding it in few bits brings.

        Steps are where the runtime has them: in its order of channels, and turned. The uncertainty of what is
        turned is that of its whole block, in both directions: each value is a sum or difference of all.
        """
        if known.sigma is None or not np.any(known.sigma):
            return known
        ordered = self.interleaved and part is Operation.SCORES
        size = self.geometry.head_dim if part is Operation.SCORES else self.geometry.value_dim
        turned = quantise.rotation_size(size) if part is Operation.SCORES else quantise.ROTATED_BLOCK
        value, sigma = known.value, np.broadcast_to(known.sigma, known.value.shape)
        if ordered:
            value, sigma = self._side_by_side(value), self._side_by_side(sigma)
        if rule.rotated:
            value, sigma = quantise.hadamard_rotated(value, turned), _spread(sigma, turned)
        held = rule.kept or partial(rule.held_right, kv_heads=self.geometry.kv_heads, head_dim=size)
        found = with_uncertain_steps(Known(value=value, sigma=sigma), held).sigma
        assert found is not None
        if rule.rotated:
            found = _spread(found, turned)
        return Known(value=known.value, sigma=np.fmax(known.sigma, self._halves(found) if ordered else found))

    def _halves(self, x: F64) -> F64:
        pairs = x.reshape(len(x), -1, self.geometry.head_dim // 2, 2)
        return pairs.swapaxes(-1, -2).reshape(x.shape)

    def block_sums(self, inputs: Mapping[str, F64], rule: Rule) -> tuple[F64, F64]:
        """Return what block sums add to the scores, see :func:`block_sum_scores`."""
        return block_sum_scores(*self.rotated(inputs, rule), rule, self.geometry, self.layer)

    def scores(self, q: F64, k: F64, rule: Rule) -> F64:
        """Return the scores [H, n, m] of rows of q [n, H * D] and k [m, K * D], both from ``rotated``."""
        geometry = self.geometry
        left, right = (x.reshape(len(x), -1, geometry.head_dim) for x in (rule.left(q), rule.right(k)))
        right = np.repeat(right, geometry.heads // geometry.kv_heads, axis=1)
        scale = geometry.attn_scale_at(self.layer)
        made = softcap(left.swapaxes(0, 1) @ right.transpose(1, 2, 0) * scale, geometry.attn_softcap)
        if rule.block_sums:
            made = made + block_sum_scores(q, k, rule, geometry, self.layer)[0]
        return np.asarray(made)

    def noise(self, operation: Operation, inputs: Mapping[str, F64], rule: Rule, values: F64) -> F64 | float:
        """Return the sigma that holding the operands as ``rule`` says adds to that of the sums."""
        noise: F64 | float = 0.0
        if operation is Operation.SCORES and rule.block_sums:
            noise = self.block_sums(inputs, rule)[1]
        if operation is Operation.MIX and rule.rotated:
            noise = turning_noise(values)
        return noise


def _spread(sigma: F64, size: int) -> F64:
    """Return the sigma of sums and differences of ``size`` values, divided by the root of ``size``."""
    blocks = sigma.reshape(len(sigma), -1, size)
    return np.broadcast_to(np.sqrt(np.mean(np.square(blocks), axis=-1, keepdims=True)), blocks.shape).reshape(
        sigma.shape
    )
