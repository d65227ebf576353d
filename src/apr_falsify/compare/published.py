"""The published rule: nine cosines of an attention block, and where they cross 0.999.

FALSIFY-ATTN-SUB-004 predicts exactly one adjacent pair (i, i+1) with cos[i] >= 0.999 and
cos[i+1] < 0.999. It is always shown beside the bisection, because contracts are written in its terms; it
cannot see a scale and takes siblings (q and k) for a chain, so it decides nothing here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apr_falsify.model.stages import ATTENTION_CHAIN

THRESHOLD = 0.999
"""The cosine that a good stage reaches, as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRule:
    """The published rule's answer for one layer.

    Attributes:
        layer: the layer.
        chain: the stages of the attention chain that the model has, in order.
        cosines: the cosine of each; ``None`` where it was not measured.
        crossings: the adjacent pairs of which the first is good and the second is not.

    """

    layer: int
    chain: tuple[str, ...]
    cosines: tuple[float | None, ...]
    crossings: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether there is a pair at all and every stage of the chain was measured."""
        return len(self.chain) > 1 and None not in self.cosines

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "layer": self.layer,
            "chain": list(self.chain),
            "cosines": list(self.cosines),
            "crossings": [list(pair) for pair in self.crossings],
        }


def published_rule(layer: int, cosines: Mapping[str, float | None]) -> PublishedRule:
    """Apply the published rule to one layer.

    Args:
        layer: the layer.
        cosines: stage -> cosine on canonical layouts. A stage that the model does not have
            (``qkv_bias`` of a bias-free model) is left out; one that it has and that was not
            measured is ``None`` or NaN, stays in the chain, and no pair with it crosses. Stages
            outside the chain are passed over.

    """
    chain = tuple(name for name in ATTENTION_CHAIN if name in cosines)
    values = tuple(_measured(cosines[name]) for name in chain)
    rows = list(zip(chain, values, strict=True))
    crossings = tuple(
        (before, after)
        for (before, good), (after, bad) in itertools.pairwise(rows)
        if good is not None and bad is not None and good >= THRESHOLD > bad
    )
    return PublishedRule(layer=layer, chain=chain, cosines=values, crossings=crossings)


def _measured(cosine: float | None) -> float | None:
    return None if cosine is None or math.isnan(cosine) else cosine
