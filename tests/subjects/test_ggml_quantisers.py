"""llama.cpp's own quantisers, called through its library: ours give the same bits, at edges too."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from apr_falsify.numerics import quantise
from tests.edge_values import EITHER_SIDE, KINDS, SIZE, rows_of
from tests.ggml_library import DECODERS, OTHERS, OURS, Library, differing
from tests.llama_models import llama_cpp_or_skip

pytestmark = pytest.mark.live
ROWS = 20


@pytest.fixture(scope="module")
def library() -> Library:
    llama_cpp_or_skip()
    return Library()


@pytest.mark.parametrize("values", sorted(KINDS))
@pytest.mark.parametrize("kind", sorted(OURS))
def test_blocks_are_those_of_llama_cpp(kind: str, values: str, library: Library) -> None:
    rows = rows_of(values, ROWS)
    found = DECODERS[kind](library.from_float(kind)(rows))
    assert {
        what: int(where.sum()) for what, where in differing(kind, found, rows).items() if where.any()
    } == {}


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("values", sorted(KINDS))
def test_rounding_to_16_bits_is_that_of_llama_cpp(kind: str, values: str, library: Library) -> None:
    rows = rows_of(values, ROWS)
    number = gguf.GGMLQuantizationType[kind]
    found = gguf.quants.dequantize(library.from_float(kind)(rows).reshape(ROWS, -1), number)
    ours = {"F16": quantise.f16, "BF16": quantise.bf16}[kind]
    np.testing.assert_array_equal(ours(rows), found)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_quantisers_of_other_processors_differ_only_at_edges(name: str, library: Library) -> None:
    """Without AVX x is multiplied by 1 / (max / 127), and ties go away from zero."""
    kind, moved = OTHERS[name], 0
    for values in KINDS:
        rows = rows_of(values, ROWS)
        where = differing(kind, DECODERS[kind](library.named(name, kind)(rows)), rows)
        steps = quantise.STEPS[OURS[kind]](rows)
        near = steps.fraction.reshape(where["integer"].shape) <= EITHER_SIDE
        assert not where["scale"].any()
        assert not (where["integer"] & ~near).any()
        moved += int(where["integer"].sum())
    assert moved > 0


@pytest.mark.parametrize("values", sorted(KINDS))
@pytest.mark.parametrize("kind", ["Q8_0", "Q8_K"])
def test_reordered_weights_meet_the_same_activations(kind: str, values: str, library: Library) -> None:
    """llama.cpp quantises four rows at once where it keeps the weights in another order (``CPU_REPACK``)."""
    for rows in rows_of(values, 4 * ROWS).reshape(ROWS, 4, SIZE):
        np.testing.assert_array_equal(OURS[kind](rows), library.four_rows(kind, rows))


@pytest.mark.parametrize("values", sorted(KINDS))
@pytest.mark.parametrize("size", [64, 128, 256])
def test_values_are_turned_as_llama_cpp_turns_them(size: int, values: str, library: Library) -> None:
    rows = rows_of(values, ROWS).reshape(-1, size)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(quantise.hadamard_rotated(rows, size), library.turned(rows))
