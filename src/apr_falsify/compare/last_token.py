"""Stages of a mixture that stand twice: of every token, and of the last one as ``apr`` keeps them."""

from __future__ import annotations

from collections.abc import Mapping

from apr_falsify.compare.judge import Judged
from apr_falsify.model.stages import Key

HELD_IN: Mapping[str, tuple[str, ...]] = {
    "router_weights": ("moe_router", "moe_router_indices"),
    "ffn_out": ("moe_router", "moe_router_indices", "moe_ffn_out"),
}
"""Stage of all tokens -> what it is of the last one, or is made from: where it was judged, that was."""

_NAMED_BY: Mapping[str, tuple[str, ...]] = {
    "router_weights": ("moe_router", "moe_router_indices"),
    "moe_ffn_out": ("ffn_out",),
}
"""Stage -> those of the same layer that hold the same values, or some: an error of both is named there."""


def named_elsewhere(judged: Mapping[Key, Judged]) -> set[Key]:
    """Return the stages in error whose values stand under another name, which is in error too."""
    wrong = {key for key, entry in judged.items() if entry.in_error}
    return {
        key for key in wrong if any(Key(key.layer, name) in wrong for name in _NAMED_BY.get(key.stage, ()))
    }
