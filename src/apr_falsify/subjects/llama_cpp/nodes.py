"""The nodes of llama.cpp's compute graph: which is which stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from apr_falsify.errors import TraceError
from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key, Layout

UNROTATED = "kqv_unrotated"
"""The node in which a quantised V cache was rotated back, [tokens * blocks, block]; nameless in llama.cpp."""


class StageNode(NamedTuple):
    """Where llama.cpp's graph has a stage.

    Attributes:
        names: its node, and what other versions call it.
        biased: its node where the model has such biases: the plain one is the product before it is added.
        twice: which occurrence it is of a node that may occur twice in one evaluation.
        layout: how it is stored.

    """

    names: tuple[str, ...]
    biased: tuple[str, ...] = ()
    twice: int | None = None
    layout: tuple[Layout, ...] = ()


NODES: Mapping[str, StageNode] = {
    "embedding": StageNode(("embd", "inp_embd")),
    "attn_norm": StageNode(("attn_norm-{n}",)),
    # The scale is applied inside llama.cpp's softmax.
    "attn_scores": StageNode(("kq-{n}",), layout=(Layout.UNSCALED, Layout.PADDED_KEYS)),
    "attn_softmax": StageNode(("kq_soft_max-{n}", "kq_soft_max_ext-{n}"), layout=(Layout.PADDED_KEYS,)),
    "attention": StageNode((f"{UNROTATED}-{{n}}", "kqv_out-{n}")),
    "attn_out": StageNode(("attn_out-{n}",), twice=-1),  # the second is the sum of the first and its bias
    "attn_proj": StageNode(("attn_out-{n}",), twice=-1),
    "post_attn_residual": StageNode(("ffn_inp-{n}", "sa_out-{n}")),
    "ffn_norm": StageNode(("ffn_norm-{n}", "attn_post_norm-{n}", "post_attn_norm-{n}")),
    # A router that makes a softmax of the chosen logits alone gives its sum with the bias another name.
    "router_logits": StageNode(("ffn_moe_logits-{n}",), biased=("ffn_moe_probs-{n}",)),
    "ffn_gate": StageNode(("ffn_gate-{n}", "ffn_gate_b-{n}"), biased=("ffn_gate_b-{n}",)),
    "ffn_up": StageNode(("ffn_up-{n}", "ffn_up_b-{n}"), biased=("ffn_up_b-{n}",)),
    "ffn_silu": StageNode(("ffn_silu-{n}", "ffn_gelu-{n}", "ffn_sqr(relu)-{n}")),
    "ffn_swigl": StageNode(("ffn_swiglu-{n}", "ffn_geglu-{n}", "ffn_gate_par-{n}")),
    # The second is what a control vector is added to. With a shared expert the mixture is a part of it.
    "ffn_out": StageNode(("ffn_moe_out_merged-{n}", "ffn_out-{n}", "ffn_moe_out-{n}"), twice=0),
    "ffn_proj": StageNode(("ffn_out-{n}", "ffn_moe_out-{n}"), twice=0),
    "post_ffn_residual": StageNode(("l_out-{n}",)),
    "final_norm": StageNode(("result_norm",)),
    "lm_head": StageNode(("result_output",)),
}
"""Stage -> where the graph has it; q, k and v are read by :func:`_projected`."""

NORMED: Mapping[str, StageNode] = {
    "attn_out": StageNode(("attn_post_norm-{n}", "post_attn_norm-{n}")),
    "ffn_out": StageNode(("ffn_post_norm-{n}", "post_mlp_norm-{n}")),
}
"""Where the graph has what a block adds to the stream, if it passes a norm before."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "qkv_matmul": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "qkv_bias": ("Qcur-{n}", "Kcur-{n}", "Vcur-{n}"),
    "q_post_rope": ("Qcur-{n}",),
    "k_post_rope": ("Kcur-{n}",),
}
"""Stage -> the nodes of which it is one occurrence."""

FLASH_HIDES = ("attn_scores", "attn_softmax")
"""Stages that flash attention computes within the one operation that gives ``attention``."""

MEASURED: tuple[str, ...] = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "arcee",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "minimax_m2",
    "mixtral",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
)
"""The families whose graph was looked at; the nodes of others may mean something else."""


def nodes_of(keys: Iterable[Key]) -> list[str]:
    """Return the nodes that the stages ``keys`` are read from."""
    found: dict[str, None] = {}
    for layer, name in keys:
        rows = [table[name].names for table in (NODES, NORMED) if name in table]
        rows += [NODES[name].biased] if name in NODES else []
        for node in (*(node for names in rows for node in names), *STEPS.get(name, ())):
            found[node.format(n=layer)] = None
    return list(found)


def check_family(geometry: Geometry, where: Path) -> None:
    """Refuse a family whose graph nobody looked at.

    Raises:
        TraceError: it is another family.

    """
    if family_of(geometry).name not in MEASURED:
        raise TraceError(
            f"llama.cpp's graph of {family_of(geometry).title} is not known here",
            where=where,
            expected="a model of the families " + ", ".join(MEASURED),
        )
