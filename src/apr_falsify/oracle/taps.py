"""Where transformers 5 computes each stage: one table.

The stages that are not here pass through no module of their own: ``qkv_matmul`` and ``qkv_bias`` are put
together from the three projections, the four attention sub-stages are seen by the attention function.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class End(StrEnum):
    """Which end of a module holds the stage."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One stage and the module that has it.

    Attributes:
        stage: the stage.
        module: the module's path within its layer (``""`` is the layer itself), or within the model.
        end: which of its ends.

    """

    stage: str
    module: str
    end: End = End.OUTPUT


LAYER_TAPS: tuple[Tap, ...] = (
    Tap(stage="attn_norm", module="self_attn.q_proj", end=End.INPUT),
    Tap(stage="attention", module="self_attn.o_proj", end=End.INPUT),
    Tap(stage="attn_out", module="self_attn.o_proj"),
    Tap(stage="post_attn_residual", module="post_attention_layernorm", end=End.INPUT),
    Tap(stage="ffn_norm", module="post_attention_layernorm"),
    Tap(stage="ffn_gate", module="mlp.act_fn", end=End.INPUT),
    Tap(stage="ffn_silu", module="mlp.act_fn"),
    Tap(stage="ffn_up", module="mlp.up_proj"),
    Tap(stage="ffn_swigl", module="mlp.down_proj", end=End.INPUT),
    Tap(stage="ffn_out", module="mlp.down_proj"),
    Tap(stage="post_ffn_residual", module=""),
)
"""Per layer, in the order in which they are computed; an input stands before its module's output.

A tensor that one module hands to the next is taken where a hook is needed anyway: each hook costs time.
"""

QKV_MODULES: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""The three projections, in the order in which ``qkv_matmul`` and ``qkv_bias`` hold them."""

ATTENTION_MODULE = "self_attn"
"""The module that calls the attention function, by its config's ``_attn_implementation``."""
