"""The stages of a decoder's forward pass: names, canonical shapes, layout words, who feeds whom.

The names are those that ``apr`` 0.72 accepts for ``--save-tensor``, spelling included
(``ffn_swigl``). A canonical shape is the one in which two traces are compared; how a runtime
stores a stage instead is described by layout words (:class:`Layout`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from apr_falsify.errors import LayerRangeError, StageError, nearest

_MAX_LAYER = 2**32 - 2  # what an APRT header can hold; the next number means the whole model

LAYER_INPUT = "layer_input"
"""What enters a layer: ``embedding`` in layer 0, else the layer before's ``post_ffn_residual``."""


class Key(NamedTuple):
    """A stage of one layer, or of the whole model.

    Attributes:
        layer: the layer, ``None`` for a stage of the whole model.
        stage: its name.

    """

    layer: int | None
    stage: str


class Scope(StrEnum):
    """Where a stage exists."""

    FIRST_LAYER = "first-layer"
    LAYER = "layer"
    MODEL = "model"


class Layout(StrEnum):
    """How a runtime stores a stage where it is not the canonical way.

    Each word names one difference from the canonical shape; ``compare.layout`` undoes it.
    """

    HEAD_MAJOR = "head-major"
    """[heads, S, D] where the canonical shape is [S, heads * D]."""
    INTERLEAVED = "interleaved"
    """Rotary pairs are (0,1), (2,3) ...; canonical is half-split: (0, D/2), (1, D/2 + 1) ..."""
    ROTARY_FIRST = "rotary-first"
    """The rotated channels of a head come first, where latent attention has them last."""
    CAUSAL_ZEROED = "causal-zeroed"
    """Zero above the diagonal, where the canonical stage holds the full square."""
    UNSCALED = "unscaled"
    """Scores before the multiplication with 1/sqrt(D)."""
    PADDED_KEYS = "padded-keys"
    """The key axis is longer than S; what lies beyond S is no data."""
    LAST_TOKEN = "last-token"
    """Only the last token's row is stored."""
    TRANSPOSED = "transposed"
    """The last two axes are swapped."""
    VISIBLE_ONLY = "visible-only"
    """Data only where a query may look: above the diagonal, and outside a window, stands anything."""
    SCALED = "scaled"
    """q (or k) times the scale of the scores, which the product then is without."""
    ROOT_SCALED = "root-scaled"
    """q and k, each times the square root of that scale."""
    HEAD_SCALED = "head-scaled"
    """q times 1/sqrt(D), in a model whose scale is another; the rest comes with the product."""
    BEFORE_SCALE = "before-scale"
    """Weights of experts without the scale of the routed ones, which their sum is multiplied with."""
    CAP_SCALED = "cap-scaled"
    """q times that scale over the soft-cap, whose tanh then divides by nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One named tensor of the forward pass.

    Attributes:
        name: the name that traces, commands and contracts use.
        axes: canonical shape, in the words of :func:`canonical_shape`.
        scope: whether it exists per layer, once per model, or in layer 0 alone.
        inner: whether it is a step on the way to one of ``apr``'s stages, which few runtimes show: where it
            was not captured, the stage after it is computed through it.
        product: whether something is multiplied and summed on the way to it, so that it depends on how a
            runtime holds its operands.
        what: one line for people.

    """

    name: str
    axes: tuple[str, ...]
    what: str
    scope: Scope = Scope.LAYER
    inner: bool = False
    product: bool = False


def _table(*stages: Stage) -> Mapping[str, Stage]:
    return {stage.name: stage for stage in stages}


STAGES: Mapping[str, Stage] = _table(
    Stage(
        name="embedding",
        axes=("tokens", "hidden"),
        what="token embedding, with whatever the family adds or scales before layer 0",
        scope=Scope.FIRST_LAYER,
    ),
    Stage(name="attn_norm", axes=("tokens", "hidden"), what="norm before attention"),
    *(
        Stage(name=name, axes=("tokens", axis), what=what, inner=True, product=product)
        for name, axis, what, product in (
            ("q_latent", "q_latent", "the latent that q is made of", True),
            ("q_latent_norm", "q_latent", "that latent after its norm", False),
            ("q_up", "q", "queries made of it, before RoPE", True),
            ("kv_latent", "kv_latent", "the latent that k and v are made of", True),
            ("kv_latent_norm", "kv_latent", "that latent after its norm, as a cache keeps it", False),
            ("kv_up", "kv_up", "k without its rotated part, and v, made of it: head by head", True),
            ("k_shared", "rotary", "the part of k that all heads share, before RoPE", True),
            ("k_rope", "rotary", "that part after RoPE, as a cache keeps it", False),
        )
    ),
    Stage(name="qkv_matmul", axes=("tokens", "qkv"), what="q|k|v before the bias", product=True),
    Stage(name="qkv_bias", axes=("tokens", "qkv"), what="q|k|v after the bias"),
    Stage(name="q_norm", axes=("tokens", "q"), what="queries after their own norm", inner=True),
    Stage(name="k_norm", axes=("tokens", "kv"), what="keys after their own norm", inner=True),
    Stage(name="q_post_rope", axes=("tokens", "q"), what="queries after RoPE"),
    Stage(name="k_post_rope", axes=("tokens", "kv"), what="keys after RoPE"),
    Stage(
        name="attn_scores_uncapped",
        axes=("heads", "tokens", "tokens"),
        what="scaled q.k before its soft-cap, where there is one",
        inner=True,
        product=True,
    ),
    Stage(
        name="attn_scores",
        axes=("heads", "tokens", "tokens"),
        what="scaled q.k before the mask, past the soft-cap where there is one",
        product=True,
    ),
    Stage(
        name="attn_softmax",
        axes=("heads", "tokens", "tokens"),
        what="attention weights after mask and softmax",
    ),
    Stage(
        name="attention",
        axes=("tokens", "mixed"),
        what="weights times values, before the output projection",
        product=True,
    ),
    Stage(
        name="attn_proj",
        axes=("tokens", "hidden"),
        what="attention's output projection, where a norm follows before it is added",
        inner=True,
        product=True,
    ),
    Stage(name="attn_out", axes=("tokens", "hidden"), what="attention's output", product=True),
    Stage(name="post_attn_residual", axes=("tokens", "hidden"), what="hidden state after attention is added"),
    Stage(name="ffn_norm", axes=("tokens", "hidden"), what="norm before the feed-forward block"),
    Stage(
        name="router_logits",
        axes=("tokens", "experts"),
        what="what the router of a mixture makes of each token, before it scores and chooses",
        inner=True,
        product=True,
    ),
    Stage(
        name="router_weights",
        axes=("tokens", "experts"),
        what="each token's weights of the experts that it is given to, 0 for all others",
        inner=True,
        product=True,
    ),
    Stage(name="ffn_gate", axes=("tokens", "ffn"), what="gate projection", product=True),
    Stage(name="ffn_up", axes=("tokens", "ffn"), what="up projection", product=True),
    Stage(name="ffn_silu", axes=("tokens", "ffn"), what="activation of the gate"),
    Stage(name="ffn_swigl", axes=("tokens", "ffn"), what="activated gate times up"),
    Stage(
        name="ffn_proj",
        axes=("tokens", "hidden"),
        what="the feed-forward block's last projection, where a norm follows before it is added",
        inner=True,
        product=True,
    ),
    Stage(name="ffn_out", axes=("tokens", "hidden"), what="feed-forward output", product=True),
    Stage(
        name="post_ffn_residual",
        axes=("tokens", "hidden"),
        what="hidden state after the feed-forward block is added",
    ),
    Stage(
        name="moe_router",
        axes=("chosen_experts",),
        what="last token's weights of the chosen experts",
        product=True,
    ),
    Stage(name="moe_ffn_out", axes=("hidden",), what="last token's mixture output", product=True),
    Stage(
        name="moe_router_indices", axes=("chosen_experts",), what="last token's chosen experts", product=True
    ),
    Stage(
        name="final_norm",
        axes=("tokens", "hidden"),
        what="norm before the output head",
        scope=Scope.MODEL,
    ),
    Stage(
        name="lm_head_proj",
        axes=("vocab",),
        what="last token's product with the head, where logits are scaled or capped after it",
        scope=Scope.MODEL,
        inner=True,
        product=True,
    ),
    Stage(
        name="lm_head",
        axes=("vocab",),
        what="last token's logits, past the soft-cap where there is one",
        scope=Scope.MODEL,
        product=True,
    ),
)
"""Every stage: those of ``apr`` 0.72 in the order of its own list, which is a forward order but for MoE, and
between them the inner ones, which ``apr`` does not have."""

APR_STAGES: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if not stage.inner)
"""The stages of ``apr`` 0.72."""

ALIASES: Mapping[str, str] = {"layer_output": "post_ffn_residual"}
"""Other names that ``apr`` accepts for a stage."""

ATTENTION_CHAIN: tuple[str, ...] = (
    "attn_norm",
    "qkv_matmul",
    "qkv_bias",
    "q_post_rope",
    "k_post_rope",
    "attn_scores",
    "attn_softmax",
    "attention",
    "attn_out",
)
"""The nine stages whose cosines the published rule reads, in its order."""

ATTENTION_SUBSTAGES: tuple[str, ...] = ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax")
"""What ``--no-attn-substages`` leaves out."""

SEEN_BY_ATTENTION: tuple[str, ...] = (*ATTENTION_SUBSTAGES, "attn_scores_uncapped", "k_rope")
"""What stands between the projections of q, k, v and the mix."""


def stage(name: str) -> Stage:
    """Return the stage called ``name`` (case-insensitive, aliases resolved).

    Raises:
        StageError: no stage has that name; the nearest known one is offered.

    """
    wanted = name.strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    try:
        return STAGES[wanted]
    except KeyError:
        raise StageError(
            f"unknown stage {name!r}",
            expected=", ".join(STAGES),
            remedy=nearest(wanted, [*STAGES, *ALIASES]),
        ) from None


def parse_stages(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of stages as ``apr trace --save-tensor`` does; ``all`` means every one.

    Case does not matter, blanks around commas are fine, an empty name between commas is an error.

    Raises:
        StageError: an empty or unknown name.

    """
    if text.strip().lower() == "all":
        return tuple(STAGES)
    names = text.split(",")
    if any(not name.strip() for name in names):
        raise StageError(f"an empty stage name in {text!r}", expected="names separated by single commas")
    return in_forward_order({stage(name).name for name in names})


def in_forward_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` in the order of the table."""
    wanted = set(names)
    return tuple(name for name in STAGES if name in wanted)


def parse_layers(text: str) -> range:
    """Read ``A..B``, end exclusive, as ``apr trace --save-tensor-layers`` does.

    Raises:
        LayerRangeError: not two whole numbers around two dots, or an empty range.

    """
    first, dots, last = text.strip().partition("..")
    if not (dots and _small_number(first) and _small_number(last)):
        raise LayerRangeError(f"not a layer range: {text!r}", expected="A..B, end exclusive, e.g. 0..1")
    layers = range(int(first), int(last))
    if not layers:
        raise LayerRangeError(
            f"the layer range {text!r} is empty",
            expected=f"an end above the start, e.g. {first}..{int(first) + 1}",
        )
    return layers


def _small_number(digits: str) -> bool:
    return digits.isascii() and digits.isdecimal() and len(digits) <= len(str(_MAX_LAYER))


def canonical_shape(name: str, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Return the canonical shape of stage ``name``.

    Args:
        name: a stage of the table.
        dims: the size of each axis word: ``tokens`` (S), ``hidden`` (E), ``heads`` (H),
            ``q`` (H*D), ``kv`` (K*D), ``qkv`` (H*D + K*D + K*Dv), ``mixed`` (H*Dv), ``ffn`` (F),
            ``vocab`` (V), ``experts`` (X), ``chosen_experts`` (k); see :meth:`Geometry.dims`.

    Raises:
        StageError: the model has no such axis, and so no such stage.

    """
    try:
        return tuple(dims[axis] for axis in STAGES[name].axes)
    except KeyError as error:
        raise StageError(f"the model has no stage {name}: its geometry knows no {error}") from error


ROWS = "rows"
"""Word for the number of tokens that were recorded, where that is not all of them."""


def recorded_shape(name: str, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Return the canonical shape of stage ``name`` with as many rows as were recorded: ``rows`` in ``dims``.

    Of a query and a key each, the keys are those of all tokens.
    """
    shape = list(canonical_shape(name, dims))
    axes = STAGES[name].axes
    if "tokens" in axes and ROWS in dims:
        shape[axes.index("tokens")] = dims[ROWS]
    return tuple(shape)


HEAD_WIDTHS: Mapping[str, str] = {"q": "head_dim", "kv": "head_dim", "mixed": "v_head_dim"}
"""Axis word of heads side by side -> that of one head."""

PER_HEAD: tuple[str, ...] = tuple(name for name, row in STAGES.items() if row.axes[-1] in HEAD_WIDTHS)
"""Stages of heads side by side, in which a head may come before the tokens."""

SCORES: tuple[str, ...] = ("attn_scores_uncapped", "attn_scores")
SQUARES: tuple[str, ...] = (*SCORES, "attn_softmax")
"""Stages of a query and a key each."""


def stored_shape(
    name: str, layout: Iterable[Layout], dims: Mapping[str, int], values: int
) -> tuple[int, ...] | None:
    """Return the shape in which a stage of ``values`` values lies in ``layout``, ``None`` if none fits.

    Args:
        name: a stage of the table.
        layout: how it is stored.
        dims: sizes of the axis words, see :func:`recorded_shape`, and ``head_dim``.
        values: how many values were stored.

    """
    words = set(layout)
    shape = list(recorded_shape(name, dims))
    if Layout.HEAD_MAJOR in words and name in PER_HEAD:
        width = dims[HEAD_WIDTHS[STAGES[name].axes[-1]]]
        shape = [shape[1] // width, shape[0], width]
    if Layout.LAST_TOKEN in words and STAGES[name].axes[0] == "tokens":
        shape.pop(-2)
    if Layout.PADDED_KEYS in words and name in SQUARES:
        shape[-1] = max(shape[-1], values // max(1, math.prod(shape[:-1])))
    if Layout.TRANSPOSED in words and len(shape) > 1:
        shape[-2:] = shape[:-3:-1]
    return tuple(shape) if math.prod(shape) == values else None
