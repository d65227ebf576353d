"""What makes a small checkpoint, and what several recipes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What makes one checkpoint.

    Attributes:
        family: its ``model_type``.
        config: what differs from the common sizes.
        within: the ``model_type`` of the larger model whose text part it is; empty for none.
        large_biases: whether k and v biases reach hundreds, as Qwen2.5's do.

    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    within: str = ""
    large_biases: bool = False


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LAYER_NORM: Mapping[str, Any] = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "pad_token_id": None}
OF_HIDDEN: Mapping[str, Any] = {"hidden_size": 96, "head_dim": None}
"""For configs that know no head_dim: 96 / 4 = 24."""
MOE: Mapping[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
}
GEMMA: Mapping[str, Any] = {"query_pre_attn_scalar": 20, "pad_token_id": None}
