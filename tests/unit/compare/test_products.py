"""Products with quantised weights: what integer kernels sum apart counts as rounding, and only there."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from apr_falsify.compare.products import SUB_BLOCKS, _offsets, product
from apr_falsify.formats.gguf import GgufTensorInfo
from apr_falsify.formats.tensors import QuantisedTensor
from apr_falsify.formats.views import HalfSplit, ViewedTensor
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation, Rule, expected_rule
from tests.unit.gguf_models import random_blocks

INTEGERS = {
    "q4_1": slice(4, 20),
    "q5_1": slice(4, 24),
    "q2_k": slice(16, 80),
    "q4_k": slice(16, 144),
    "q5_k": slice(16, 176),
    "q6_k": slice(0, 192),
    "tq1_0": slice(0, 52),
    "tq2_0": slice(0, 64),
}
"""Type -> the bytes of a block that hold its integers (ggml-common.h)."""

MASSIVE = 2374.0
"""An activation of SmolLM2's token 0 in layer 28, where all others are about 0.1."""


def rule(name: str) -> Rule:
    return next(rule for rule in RULES[Operation.PROJECTION] if rule.name == name)


def tensor_of(kind: str) -> QuantisedTensor:
    """Return 256 rows of 512 random values."""
    blocks = random_blocks((256, 512), kind.upper())
    info = GgufTensorInfo(
        name="w", shape=(256, 512), type=kind, offset=0, nbytes=blocks.size, row_bytes=blocks.shape[1]
    )
    return QuantisedTensor(info=info, data=blocks)


@pytest.mark.parametrize("kind", sorted(INTEGERS))
def test_an_offset_is_what_a_block_stands_for_whose_integers_are_zero(kind: str) -> None:
    tensor = tensor_of(kind)
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    without = tensor.data.reshape(-1, size).copy()
    without[:, INTEGERS[kind]] = 0
    expected = gguf.quants.dequantize(without.reshape(256, -1), gguf.GGMLQuantizationType[kind.upper()])
    found = _offsets(tensor)
    assert found is not None
    np.testing.assert_allclose(
        np.abs(found), np.abs(expected[:, :: SUB_BLOCKS[kind]].astype(np.float64)), rtol=1e-6
    )


def test_rows_of_interleaved_pairs_keep_their_own_offsets() -> None:
    base = tensor_of("q4_1")
    turned = ViewedTensor(base=base, view=HalfSplit(head_dim=32))
    plain, found = _offsets(base), _offsets(turned)
    assert plain is not None
    assert found is not None
    moved = [int(np.argmin(np.abs(base.rows(0, 256) - row).sum(axis=1))) for row in turned.rows(0, 256)]
    np.testing.assert_array_equal(found, plain[moved])


@pytest.mark.parametrize(("kind", "name"), [("q4_1", "q8_1 blocks of 32"), ("q6_k", "q8_k blocks of 256")])
def test_a_massive_activation_widens_the_rounding_of_an_integer_kernel_alone(kind: str, name: str) -> None:
    tensor = tensor_of(kind)
    x = np.full((1, 512), 0.1, np.float32)
    x[0, 7] = MASSIVE
    small = np.argmin(np.abs(tensor.rows(0, 256)[:, 7]))
    _, plain = product(x, (PLAIN,), None, tensor)
    _, integer = product(x, (PLAIN, rule(name)), None, tensor)
    offsets = _offsets(tensor)
    assert offsets is not None
    assert integer[0, small] >= (MASSIVE * offsets[small, 0]) ** 2 / 2
    assert plain[0, small] < integer[0, small]


def test_a_stage_of_two_weight_types_is_expected_to_multiply_each_in_its_own_way() -> None:
    found = expected_rule("llama-cpp", Operation.PROJECTION, "q5_1 and q8_0")
    assert found.name == "q8_1 blocks of 32 and q8_0 blocks of 32"
    assert found is expected_rule("llama-cpp", Operation.PROJECTION, "q5_1 and q8_0")
    assert found.of("q5_1").block_sums
    assert found.of("q8_0").name == "q8_0 blocks of 32"


@pytest.mark.parametrize("types", ["q4_k and q6_k", "q5_0 and q8_0"])
def test_types_that_are_multiplied_alike_have_one_rule(types: str) -> None:
    first = types.partition(" and ")[0]
    one = expected_rule("llama-cpp", Operation.PROJECTION, first)
    assert expected_rule("llama-cpp", Operation.PROJECTION, types) is one
