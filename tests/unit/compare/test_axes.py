"""What the axes of each stage mean, in words."""

from __future__ import annotations

import pytest

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.model.stages import STAGES
from tests.unit.compare.pairs import GEOMETRY


def test_a_place_in_a_stage_of_the_last_token_says_so() -> None:
    axes = axes_of("q_post_rope", GEOMETRY).of_last_token()
    assert axes.names == ("channel",)
    assert axes.words((2 * 32 + 17,)) == "last token, head 2, channel 17"


def test_channels_of_a_head_are_counted_within_it() -> None:
    axes = Axes(names=("token", "channel"), head_dim=4, heads=("left", "right"))
    assert axes.words((0, 0)) == "token 0, left, channel 0"
    assert axes.words((0, 3)) == "token 0, left, channel 3"
    assert axes.words((0, 4)) == "token 0, right, channel 0"
    assert axes.words((9, 7)) == "token 9, right, channel 3"


NAMES = {
    "attn_norm": ("token", "channel"),
    "attn_scores": ("head", "token", "key"),
    "attn_softmax": ("head", "token", "key"),
    "ffn_gate": ("token", "channel"),
    "lm_head": ("vocabulary entry",),
    "moe_router": ("chosen expert",),
    "router_logits": ("token", "expert"),
    "moe_ffn_out": ("channel",),
    "embedding": ("token", "channel"),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_axis_has_its_own_noun(name: str) -> None:
    axes = axes_of(name, GEOMETRY)
    assert (axes.names, axes.head_dim, axes.heads) == (NAMES[name], None, ())


def test_heads_that_lie_side_by_side_are_named_in_their_order() -> None:
    q, kv, both = (axes_of(name, GEOMETRY) for name in ("attention", "k_post_rope", "qkv_bias"))
    assert q.heads == tuple(f"head {index}" for index in range(8))
    assert kv.heads == ("kv head 0", "kv head 1")
    assert both.heads == (
        *(f"q head {index}" for index in range(8)),
        "k head 0",
        "k head 1",
        "v head 0",
        "v head 1",
    )
    assert {axes.head_dim for axes in (q, kv, both)} == {32}


def test_every_stage_has_axes() -> None:
    assert all(len(axes_of(name, GEOMETRY).names) == len(row.axes) for name, row in STAGES.items())
