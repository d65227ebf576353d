"""What a model must have so that a fault can be seeded in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.model.mixers import GatedDelta, StateSpace
from apr_falsify.model.wiring import node_of, stages_of

NEEDS: Mapping[str, Any] = {
    "biases": lambda g: g.qkv_bias,
    "head norms": lambda g: "q_norm" in stages_of(g),
    "no head norms": lambda g: "q_norm" not in stages_of(g),
    "window": lambda g: any(g.windows),
    "no window": lambda g: not any(g.windows),
    "chunks": lambda g: any(g.chunks),
    "temperature": lambda g: "q_tempered" in stages_of(g),
    "weighted input": lambda g: g.weighted_input,
    "rope": lambda g: g.rope.kind != "none",
    "rope scaling": lambda g: g.rope.kind not in ("default", "none"),
    "plain rope": lambda g: g.rope.kind == "default",
    "groups": lambda g: 1 < g.kv_heads < g.heads,
    "square q": lambda g: g.heads * g.head_dim == g.hidden and g.value_dim == g.head_dim,
    "square down": lambda g: g.intermediate == g.hidden,
    "own head": lambda g: not g.tied,
    "rms norm": lambda g: node_of("final_norm", g, None).operator == "rms_norm",
    "sinks": lambda g: g.sinks,
    "clamp": lambda g: g.expert_limit is not None,
    "delta rule": lambda g: isinstance(g.mixer, GatedDelta),
    "state space": lambda g: isinstance(g.mixer, StateSpace),
    "groups of heads": lambda g: 1 < g.mixer.groups < g.mixer.heads,
    "silu": lambda g: g.activation == "silu",
}
"""What a fault can ask of a model, by its geometry."""
