"""The ways in which runtimes store stages: the closed list of conventions that the solver tries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from apr_falsify.compare.bisection import FindingType
from apr_falsify.model.stages import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """A way to store stages.

    Attributes:
        name: what reports call it.
        word: the layout word that it adds, or takes away where it was declared.
        stages: the stages that it concerns, together.
        finding: what it is reported as: a mismatch that the runtime should declare, or one that is no matter.
        of_latents: whether it is one of latent attention alone.

    """

    name: str
    word: Layout
    stages: tuple[str, ...]
    finding: FindingType = FindingType.LAYOUT
    of_latents: bool = False


_BEFORE_ROPE = ("q_up", "k_shared", "qkv_matmul")
_AFTER_ROPE = ("q_post_rope", "k_post_rope", "k_rope")
_OF_Q = (("q_post_rope",), ("qkv_bias", "q_post_rope"), ("qkv_matmul", "qkv_bias", "q_post_rope"))
_WHENCE = ("", ", from the bias on", ", from the weights on")
_FOLDED: Mapping[Layout, str] = {
    Layout.SCALED: "q holds the scale of the scores",
    Layout.HEAD_SCALED: "q holds 1/sqrt(D) of the scale of the scores",
    Layout.CAP_SCALED: "q holds the scale of the scores over their soft-cap",
    Layout.ROOT_SCALED: "q and k each hold the root of the scale of the scores",
}


def _folded() -> Iterator[Convention]:
    """Yield the ways in which the scale of the scores is multiplied into q and k already."""
    no_matter = FindingType.RECORDING
    for word, name in _FOLDED.items():
        more = ("k_post_rope",) if word is Layout.ROOT_SCALED else ()
        for stages, whence in zip(_OF_Q, _WHENCE, strict=True):
            yield Convention(name=name + whence, word=word, stages=(*stages, *more), finding=no_matter)
    name = "k holds the scale of the scores"
    yield Convention(name=name, word=Layout.SCALED, stages=("k_post_rope",), finding=no_matter)


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="scores zero above the diagonal",
        word=Layout.CAUSAL_ZEROED,
        stages=("attn_scores",),
        finding=FindingType.RECORDING,
    ),
    Convention(
        name="scores are data only where a query may look",
        word=Layout.VISIBLE_ONLY,
        stages=("attn_scores",),
        finding=FindingType.RECORDING,
    ),
    Convention(
        name="softmax is data only where a query may look",
        word=Layout.VISIBLE_ONLY,
        stages=("attn_softmax",),
        finding=FindingType.RECORDING,
    ),
    *_folded(),
    Convention(
        name="weights of experts before the scale of the routed ones",
        word=Layout.BEFORE_SCALE,
        stages=("router_weights", "moe_router"),
        finding=FindingType.RECORDING,
    ),
    Convention(
        name="rotary pairs interleaved in q and k",
        word=Layout.INTERLEAVED,
        stages=(*_BEFORE_ROPE, "qkv_bias", *_AFTER_ROPE),
    ),
    Convention(
        name="rotary pairs interleaved after RoPE",
        word=Layout.INTERLEAVED,
        stages=_AFTER_ROPE,
    ),
    # transformers' own way for DeepSeek-V3, whose rotation puts in order what lies interleaved before.
    Convention(
        name="rotary pairs interleaved before RoPE",
        word=Layout.INTERLEAVED,
        stages=_BEFORE_ROPE,
        of_latents=True,
    ),
    Convention(
        name="rotated channels first in q and k",
        word=Layout.ROTARY_FIRST,
        stages=("q_up", "qkv_matmul", "q_post_rope", "k_post_rope"),
    ),
    Convention(
        name="rotated channels first after RoPE",
        word=Layout.ROTARY_FIRST,
        stages=("q_post_rope", "k_post_rope"),
    ),
    Convention(name="scores stored before 1/sqrt(D)", word=Layout.UNSCALED, stages=("attn_scores",)),
    Convention(name="q and k head-major", word=Layout.HEAD_MAJOR, stages=("q_post_rope", "k_post_rope")),
    Convention(name="q head-major", word=Layout.HEAD_MAJOR, stages=("q_post_rope",)),
    Convention(name="k head-major", word=Layout.HEAD_MAJOR, stages=("k_post_rope",)),
    Convention(name="attention head-major", word=Layout.HEAD_MAJOR, stages=("attention",)),
    Convention(name="scores transposed", word=Layout.TRANSPOSED, stages=("attn_scores",)),
    Convention(name="softmax transposed", word=Layout.TRANSPOSED, stages=("attn_softmax",)),
    Convention(
        name="scores and softmax transposed", word=Layout.TRANSPOSED, stages=("attn_scores", "attn_softmax")
    ),
    Convention(
        name="channel-major", word=Layout.TRANSPOSED, stages=("attn_norm", "attn_out", "ffn_norm", "ffn_out")
    ),
)
"""What is tried, singly and in pairs."""
