"""Tensors as a forward pass uses them: any slice of rows is that of the whole, in the order of use."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.formats.views import HalfSplit, OneExpert, RowsByHead, View, ViewedTensor
from tests.unit.helpers import plain, whole

HEADS, SIZE = 3, 10
ROWS = np.arange(HEADS * SIZE * 4, dtype=np.float32).reshape(HEADS * SIZE, 4)


@pytest.mark.parametrize("width", [None, 10, 4, 2])
def test_neighbouring_pairs_become_halves_of_what_is_rotated_and_the_rest_stays(width: int | None) -> None:
    view = HalfSplit(head_dim=SIZE, width=width)
    turned = SIZE if width is None else width
    order = [*range(0, turned, 2), *range(1, turned, 2), *range(turned, SIZE)]
    expected = ROWS.reshape(HEADS, SIZE, 4)[:, order].reshape(-1, 4)

    assert np.array_equal(view.of_whole_heads(ROWS), expected)
    assert np.array_equal(view.as_stored(expected), ROWS)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_rows_that_lie_head_by_head_are_gathered(part: int) -> None:
    fused = np.arange(HEADS * 3 * SIZE, dtype=np.float32).reshape(HEADS, 3, SIZE)
    tensor = ViewedTensor(base=plain(fused.reshape(-1)), view=RowsByHead(head_dim=SIZE, part=part))

    assert tensor.shape == (HEADS * SIZE,)
    assert np.array_equal(whole(tensor), fused[:, part].reshape(-1))


def test_one_expert_is_its_matrix() -> None:
    experts = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
    tensor = ViewedTensor(base=plain(experts), view=OneExpert(expert=1))

    assert tensor.shape == (6, 4)
    assert np.array_equal(whole(tensor), experts[1])


@pytest.mark.parametrize(
    "view", [HalfSplit(head_dim=SIZE, width=4), RowsByHead(head_dim=5, part=1)], ids=["halves", "by head"]
)
def test_any_rows_are_those_of_the_whole(view: View) -> None:
    tensor = ViewedTensor(base=plain(ROWS), view=view)
    held = whole(tensor)
    for start in range(len(held)):
        for stop in range(start, len(held) + 1):
            assert np.array_equal(tensor.rows(start, stop), held[start:stop]), (start, stop)
