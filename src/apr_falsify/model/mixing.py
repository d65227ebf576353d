"""Blocks in the place of attention: a gated delta rule, a state space, a short convolution; gated attention.

As in ``blocks.py`` each gives nodes in forward order, up to the residual stream after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, dropwhile

from apr_falsify.model.blocks import norm_node
from apr_falsify.model.graph import ModulePlace, Node, Nodes, Pick, Tap
from apr_falsify.model.mixers import ShortConv, StateSpace
from apr_falsify.model.rewired import followed
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT

_WITHIN = Tap(module=ModulePlace.FUNCTION)


def instead_of_attention(nodes: Iterable[Node], block: Nodes) -> Nodes:
    """Return the nodes of a layer with ``block`` for its attention, up to the residual stream after it."""
    rest = dropwhile(lambda node: node.stage != "post_attn_residual", nodes)
    return (*block, *rest)


def _linear(stage: str, role: str, source: str = "attn_norm", bias: bool = False) -> Node:
    roles = (role, *((f"{role}_bias",) if bias else ()))
    return Node(stage=stage, operator="linear", inputs={source: source}, roles=roles, tap=Tap(module=role))


def _norm(reader: str) -> Node:
    return norm_node("attn_norm", LAYER_INPUT, tap=Tap(module=reader, pick=Pick.INPUT))


def delta_block(geometry: Geometry) -> Nodes:
    """Return linear attention by a gated delta rule."""
    return (
        _norm("scan_qkv"),
        _linear("scan_qkv", "scan_qkv"),
        _linear("scan_gate", "scan_z"),
        _linear("beta_logits", "scan_b"),
        _linear("decay_logits", "scan_a"),
        Node(
            stage="conv_out",
            operator="short_conv",
            inputs={"conv_in": "scan_qkv"},
            roles=("conv",),
            constants={"activation": geometry.activation},
            tap=_WITHIN,
        ),
        Node(stage="beta", operator="beta", inputs={"beta_logits": "beta_logits"}, tap=_WITHIN),
        Node(
            stage="decay",
            operator="decay",
            inputs={"decay_logits": "decay_logits"},
            roles=("decay_log", "decay_shift"),
            tap=_WITHIN,
        ),
        Node(
            stage="scan_out",
            operator="gated_delta",
            inputs={"conv_out": "conv_out", "beta": "beta", "decay": "decay"},
            tap=_WITHIN,
        ),
        Node(
            stage="scan_norm",
            operator="gated_norm",
            inputs={"scan_out": "scan_out", "scan_gate": "scan_gate"},
            roles=("scan_norm",),
            tap=Tap(module="scan_o", pick=Pick.INPUT),
        ),
        _linear("attn_out", "scan_o", "scan_norm"),
    )


def state_space_block(geometry: Geometry) -> Nodes:
    """Return a selective state space, as Mamba-2 has it: the gate z is applied before the norm."""
    sizes = geometry.mixer
    assert isinstance(sizes, StateSpace)
    return (
        _norm("scan_z"),
        _linear("scan_gate", "scan_z", bias=sizes.bias),
        _linear("scan_xbc", "scan_xbc", bias=sizes.bias),
        _linear("dt_logits", "scan_dt", bias=sizes.bias),
        Node(
            stage="conv_out",
            operator="short_conv",
            inputs={"conv_in": "scan_xbc"},
            roles=("conv", *(("conv_bias",) if sizes.conv_bias else ())),
            constants={
                "activation": sizes.activation,
                "bias_before": "scan_xbc_bias" if sizes.bias else "",
            },
            tap=_WITHIN,
        ),
        Node(
            stage="dt",
            operator="step",
            inputs={"dt_logits": "dt_logits"},
            roles=("dt_shift",),
            tap=_WITHIN,
        ),
        Node(stage="decay", operator="step_decay", inputs={"dt": "dt"}, roles=("decay_log",), tap=_WITHIN),
        Node(
            stage="scan_out",
            operator="state_space",
            inputs={"conv_out": "conv_out", "dt": "dt", "decay": "decay"},
            roles=("scan_skip",),
            tap=_WITHIN,
        ),
        Node(
            stage="scan_norm",
            operator="gate_then_norm",
            inputs={"scan_out": "scan_out", "scan_gate": "scan_gate"},
            roles=("scan_norm",),
            tap=Tap(module="scan_o", pick=Pick.INPUT),
        ),
        _linear("attn_out", "scan_o", "scan_norm", sizes.bias),
    )


def conv_block(geometry: Geometry) -> Nodes:
    """Return a short convolution with a gate before and after it."""
    assert isinstance(geometry.mixer, ShortConv)
    bias = geometry.mixer.bias
    return (
        _norm("conv_proj"),
        _linear("conv_proj", "conv_proj", bias=bias),
        Node(stage="conv_in", operator="conv_gate", inputs={"conv_proj": "conv_proj"}, tap=_WITHIN),
        Node(
            stage="conv_out",
            operator="short_conv",
            inputs={"conv_in": "conv_in"},
            roles=("conv", *(("conv_bias",) if bias else ())),
            constants={"activation": "", "bias_before": "conv_proj_bias" if bias else ""},
            tap=_WITHIN,
        ),
        Node(
            stage="conv_gated",
            operator="conv_gate",
            inputs={"conv_out": "conv_out", "conv_proj": "conv_proj"},
            tap=Tap(module="conv_o", pick=Pick.INPUT),
        ),
        _linear("attn_out", "conv_o", "conv_gated", bias),
    )


def gated_attention(nodes: Nodes, bias: bool) -> Nodes:
    """Return the nodes of a layer whose attention is multiplied with the sigmoid of a gate of its own."""
    gate = _linear("attn_gate", "attn_gate", bias=bias)
    gated = Node(
        stage="attn_gated",
        operator="sigmoid_gate",
        inputs={"attention": "attention", "attn_gate": "attn_gate"},
    )
    nodes = followed(nodes, "attention", gated, Tap(module=ModulePlace.ATTENTION_FUNCTION))
    return tuple(
        chain.from_iterable((node, gate) if node.stage == "attn_norm" else (node,) for node in nodes)
    )
