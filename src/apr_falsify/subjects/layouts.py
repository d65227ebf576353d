"""How each runtime lays its stages out: one table.

What a row declares was measured on real runs: ``apr`` 0.72.3 on a qwen2 and a llama checkpoint (HF and
GGUF imports).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from apr_falsify.stages import Layout

Declared = Mapping[str, tuple[Layout, ...]]
"""Stage -> layout words; a stage without a row is canonical."""

ROTARY_STAGES: tuple[str, ...] = ("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope")
"""The stages in which the order of rotary pairs shows."""


def apr(interleaved: bool) -> Declared:
    """Return apr's layout; ``interleaved`` where its weights hold interleaved rotary pairs."""
    rotary = {name: (Layout.INTERLEAVED,) for name in ROTARY_STAGES if interleaved}
    return {
        **rotary,
        "attn_scores": (Layout.CAUSAL_ZEROED,),
        "attn_softmax": (Layout.CAUSAL_ZEROED,),
    }


LAYOUTS: Mapping[str, Callable[[bool], Declared]] = {"apr": apr}
"""Runtime -> its layout, given whether its weights hold interleaved rotary pairs."""
