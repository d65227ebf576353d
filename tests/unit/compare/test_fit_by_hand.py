"""How well a replay explains a stage that holds what is no number, by hand; and a transposed one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apr_falsify.compare.fit import fit_of
from apr_falsify.compare.layout import canonical
from apr_falsify.model.stages import Key, Layout
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.traces.trace import StageArray
from tests.unit.helpers import small_geometry

NAN, INF = math.nan, math.inf
RIGHT = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("subject", "expected", "excess", "share"),
    [
        (RIGHT, RIGHT, 0, 1),
        ([[1, 2], [3, NAN]], RIGHT, INF, 0.75),
        (RIGHT, [[1, 2], [3, NAN]], INF, 0.75),
        ([[1, 2], [3, NAN]], [[1, 2], [3, NAN]], 0, 1),
        ([[1, 2], [3, INF]], [[1, 2], [3, INF]], 0, 1),
        ([[1, 2], [3, -INF]], [[1, 2], [3, INF]], INF, 0.75),
        ([[1, 2], [3, INF]], RIGHT, INF, 0.75),
        ([[NAN] * 2] * 2, [[NAN] * 2] * 2, 0, 1),
        ([[NAN] * 2] * 2, RIGHT, INF, 0),
    ],
)
def test_what_is_no_number_is_right_only_where_the_replay_has_the_same(
    subject: list[list[float]], expected: list[list[float]], excess: float, share: float
) -> None:
    values = np.array(subject), np.array(expected)
    found = fit_of(PLAIN, *values, np.full((2, 2), 1e-6), 2.0**-24)
    assert (found.excess, found.share) == (excess, share)
    assert found.residual == 0


def test_a_stage_stored_by_channel_is_turned() -> None:
    stored = np.arange(8.0).reshape(4, 2)
    array = StageArray(data=stored, layout=(Layout.TRANSPOSED,))
    geometry = small_geometry(hidden_size=4, num_attention_heads=1, num_key_value_heads=1)
    found = canonical(array, Key(0, "attn_out"), geometry, 2)
    assert found.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_single_row_that_was_stored_by_channel_is_the_same_either_way() -> None:
    array = StageArray(data=np.arange(4.0), layout=(Layout.TRANSPOSED, Layout.LAST_TOKEN))
    geometry = small_geometry(hidden_size=4, num_attention_heads=1, num_key_value_heads=1)
    assert canonical(array, Key(0, "attn_out"), geometry, 2).tolist() == [0, 1, 2, 3]
