"""Keys that a decode step took from another run, held in few bits where the runtime turns them first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.operands import Operands
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import Operation, stated_rules
from apr_falsify.operators.roundoff import Known
from tests.unit.helpers import small_geometry

F64 = npt.NDArray[np.float64]
D, SIGMA, TOKENS = 64, 2e-5, 1500


def matrix(size: int) -> F64:
    """Return the normalised Hadamard matrix, from its definition."""
    made = np.ones((1, 1))
    while len(made) < size:
        made = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), made)
    return made / np.sqrt(size)


def codes(turned: F64) -> tuple[F64, F64]:
    """Return what 8 bits hold of blocks of 32, before it is rounded, and the scale of each value's block."""
    blocks = turned.reshape(len(turned), -1, 32)
    largest = np.max(np.abs(blocks), axis=-1, keepdims=True)
    scales = np.broadcast_to((largest / 127).astype(np.float16), blocks.shape)
    return (blocks * 127 / largest).reshape(turned.shape), scales.reshape(turned.shape).astype(np.float64)


@pytest.mark.parametrize(
    ("part", "name", "interleaved"),
    [
        (Operation.SCORES, "q8_0 k cache, Hadamard-rotated", False),
        (Operation.SCORES, "q8_0 k cache, Hadamard-rotated", True),
        (Operation.SCORES, "q8_0 k cache", True),
        (Operation.MIX, "q8_0 v cache, Hadamard-rotated", False),
    ],
)
def test_an_edge_is_looked_for_where_the_runtime_holds_the_value(
    part: Operation, name: str, interleaved: bool
) -> None:
    random = np.random.default_rng(3)
    geometry = small_geometry(hidden_size=2 * D, num_attention_heads=2, num_key_value_heads=1, head_dim=D)
    value = random.standard_normal((TOKENS, D))
    operands = Operands(geometry=geometry, layer=0, interleaved=interleaved)
    known = Known(value=value, sigma=np.full(value.shape, SIGMA))
    found = operands.with_uncertain_steps(part, known, stated_rules(name)[part])
    assert found.sigma is not None
    np.testing.assert_array_equal(found.value, value)
    widened = np.any(found.sigma > 2 * SIGMA, axis=-1)

    order = np.arange(D).reshape(2, D // 2).T.reshape(-1) if interleaved else np.arange(D)
    turn = matrix(D) if "rotated" in name else np.eye(D)
    own = value[:, order] @ turn
    theirs = (value + SIGMA / 4 * random.standard_normal(value.shape))[:, order] @ turn
    (ours, scales), (other, _) = codes(own), codes(theirs)
    flipped = np.any(np.rint(ours) != np.rint(other), axis=-1)
    assert np.count_nonzero(flipped) >= 10
    assert not np.any(flipped & ~widened)

    # A token is widened where a value is as near to an edge as it is uncertain, or its block's scale is.
    near = np.abs(ours - np.floor(ours) - 0.5) * scales < 2 * SIGMA
    blocks = np.max(np.abs(own.reshape(TOKENS, -1, 32)), axis=-1)
    moved = [((blocks + side * 2 * SIGMA) / 127).astype(np.float16) for side in (-1, 1)]
    assert not np.any(widened & ~near.any(axis=-1) & ~(moved[0] != moved[1]).any(axis=-1))
    assert np.mean(widened) < 0.5


def test_a_turned_value_is_turned_back_to_its_own_channels() -> None:
    """One block of one head is on an edge: the other head's channels are as certain as they were."""
    geometry = small_geometry(hidden_size=2 * D, num_attention_heads=2, num_key_value_heads=2, head_dim=D)
    turned = np.full((1, 2 * D), 0.25)
    turned[0, [0, D]], turned[0, 5] = 127.0, 3.5
    value = (turned.reshape(2, D) @ matrix(D)).reshape(1, -1)
    halves = np.argsort(np.arange(D).reshape(2, D // 2).T.reshape(-1))
    value = value.reshape(2, D)[:, halves].reshape(1, -1)
    operands = Operands(geometry=geometry, layer=0, interleaved=True)
    rule = stated_rules("q8_0 k cache, Hadamard-rotated")[Operation.SCORES]
    known = Known(value=value, sigma=np.full(value.shape, 1e-3))
    found = operands.with_uncertain_steps(Operation.SCORES, known, rule).sigma
    assert found is not None
    np.testing.assert_allclose(found[0, :D], 1 / np.sqrt(D), rtol=0.01)  # a step of 1 in one of 64
    assert found[0, D:].max() < 2e-3
    assert quantise.rotation_size(D) == D
