"""How each runtime lays its stages out: one table.

What a row declares was measured on real runs: ``apr`` 0.72.3 on a qwen2 and a llama checkpoint (HF and
GGUF imports).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apr_falsify.model.stages import Layout

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a runtime declares from one version on.

    Attributes:
        since: the first version that it holds for.
        layout: stage -> layout words, given whether its weights hold interleaved rotary pairs.
        arithmetic: what it computes in, in the words of ``operand_rules.py``; ``unknown`` leaves it to the
            runtime's row there.

    """

    since: tuple[int, ...]
    layout: Callable[[bool], Declared]
    arithmetic: str = "unknown"


DECLARATIONS: Mapping[str, tuple[Declaration, ...]] = {"apr": (Declaration(since=(0,), layout=apr),)}
"""Runtime -> what it declares, by version, oldest first."""


def declaration(runtime: str, version: str = "unknown") -> Declaration:
    """Return what ``runtime`` declares in ``version``, e.g. ``0.72.3``; in the newest one where unknown."""
    rows = DECLARATIONS[runtime]
    match = re.match(r"\d+(?:\.\d+)*", version)
    if match is None:
        return rows[-1]
    number = tuple(int(part) for part in match[0].split("."))
    return next((row for row in reversed(rows) if row.since <= number), rows[0])
