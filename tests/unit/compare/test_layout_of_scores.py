"""A folded scale undone, and scores that are data only where a query may look."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.layout import aligned, canonical
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Layout, canonical_shape
from tests.unit.compare.test_layout import SMALL, D, H, K, S, key, numbered, stage

ROOT = math.sqrt(6)  # of D: 1 / ROOT is the scale of the scores
CAPPED = replace(SMALL, family="gemma2", attn_scales=(0.25,), attn_softcap=5.0)


@pytest.mark.parametrize(
    ("word", "name", "geometry", "times"),
    [
        (Layout.SCALED, "q_post_rope", SMALL, (ROOT, ROOT, 1)),
        (Layout.SCALED, "k_post_rope", SMALL, (ROOT, ROOT, 1)),
        (Layout.SCALED, "qkv_matmul", SMALL, (ROOT, 1, 1)),
        (Layout.ROOT_SCALED, "k_post_rope", SMALL, (math.sqrt(ROOT), math.sqrt(ROOT), 1)),
        (Layout.ROOT_SCALED, "qkv_bias", SMALL, (math.sqrt(ROOT), math.sqrt(ROOT), 1)),
        (Layout.SCALED, "q_post_rope", CAPPED, (4, 4, 1)),
        (Layout.HEAD_SCALED, "q_post_rope", CAPPED, (ROOT, ROOT, 1)),
        (Layout.HEAD_SCALED, "qkv_matmul", CAPPED, (ROOT, 1, 1)),
        (Layout.CAP_SCALED, "q_post_rope", CAPPED, (20, 20, 1)),
    ],
)
def test_a_folded_scale_is_taken_out_of_q_of_k_and_never_of_v(
    word: Layout, name: str, geometry: Geometry, times: tuple[float, float, float]
) -> None:
    data = numbered(*canonical_shape(name, geometry.dims(S)))
    exact = data.astype(np.float64)
    found = canonical(stage(data, word), key(name), geometry, S)
    widths = (H * D, K * D, K * D)
    expected = exact * np.repeat(times, widths)[: data.shape[1]]
    if name == "k_post_rope":
        expected = exact * times[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert data[0, 1] == 1, "the captured data must stay as they are"


def test_a_scaled_q_may_be_head_major_and_the_last_tokens_alone() -> None:
    words = (Layout.HEAD_MAJOR, Layout.LAST_TOKEN, Layout.SCALED)
    found = canonical(stage(numbered(H, 1, D), *words), key("q_post_rope"), SMALL, S)
    np.testing.assert_allclose(found, numbered(H * D).astype(np.float64) * ROOT, rtol=1e-12)


WINDOWED = replace(SMALL, family="mistral", windows=(2,))
SEEN = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool)
"""What three tokens may look at through a window of two."""


def test_scores_are_kept_where_a_query_may_look_alone() -> None:
    data = np.where(SEEN, numbered(H, S, S), np.nan).astype(np.float32)
    found = canonical(stage(data, Layout.VISIBLE_ONLY), key("attn_scores"), WINDOWED, S)
    np.testing.assert_array_equal(found, np.where(SEEN, numbered(H, S, S), 0))
    pair = aligned(
        key("attn_scores"), stage(numbered(H, S, S)), stage(data, Layout.VISIBLE_ONLY), WINDOWED, S
    )
    np.testing.assert_array_equal(pair.oracle, pair.subject)
    assert pair.layout == (Layout.VISIBLE_ONLY,)


def test_a_weight_where_no_query_may_look_stays_and_what_is_no_number_is_none() -> None:
    data = np.tile(np.where(SEEN, np.float32(0.5), np.float32(np.nan)), (H, 1, 1))
    data[1, 0, 2], data[2, 2, 0] = 0.25, -np.inf
    found = canonical(stage(data, Layout.VISIBLE_ONLY), key("attn_softmax"), WINDOWED, S)
    expected = np.where(SEEN, 0.5, 0) * np.ones((H, 1, 1))
    expected[1, 0, 2] = 0.25
    np.testing.assert_array_equal(found, expected)
