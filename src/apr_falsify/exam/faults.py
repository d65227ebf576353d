"""The catalogue of seeded faults: each one a thing that ports of a model have really got wrong.

A fault is seeded where it can be: as a wrong formula of one stage (in the embedded runtime), as wrong
tensors or a wrong config of a checkpoint (in every runtime), or as a patch of a torch module, which the
oracle's room keeps by the fault's name. What a good explanation says is given as a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from apr_falsify.exam.seeding import formulas as f
from apr_falsify.exam.seeding import places as p
from apr_falsify.exam.seeding import tensors as t
from apr_falsify.exam.seeding.scene import Formula
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Scope
from apr_falsify.model.wiring import has_stage, node_of, stages_of


class Spread(StrEnum):
    """In how many layers a fault sits."""

    ONE = "one layer"
    EVERY = "every layer"
    ONCE = "the whole model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the catalogue.

    Attributes:
        name: its name.
        title: what a port gets wrong.
        stages: the stages that are wrong.
        says: what a good explanation says, a regular expression.
        spread: in how many layers.
        formula: how the embedded runtime computes the stages instead.
        edit: which tensors replace sound ones.
        config: which config replaces the sound one.
        needs: what a model must have, see :data:`NEEDS`.

    """

    name: str
    title: str
    stages: tuple[str, ...]
    says: str
    spread: Spread = Spread.ONE
    formula: Formula | None = None
    edit: t.Edit | None = None
    config: t.ConfigEdit | None = None
    needs: tuple[str, ...] = ()

    def fits(self, geometry: Geometry) -> bool:
        """Whether a model of ``geometry`` can have it."""
        present = set(stages_of(geometry))
        return present.issuperset(self.stages) and all(NEEDS[need](geometry) for need in self.needs)

    def edits(self, geometry: Geometry) -> bool:
        """Whether wrong tensors of such a model have it; latent attention has others than q, k and v."""
        return self.edit is not None and not (geometry.kv_latent and "qkv_matmul" in self.stages)

    def truth(self, geometry: Geometry, layer: int) -> tuple[Key, ...]:
        """Return the stages that are wrong where the fault is put into ``layer``, in forward order."""
        layers: Mapping[Spread, tuple[int | None, ...]] = {
            Spread.ONE: (layer,),
            Spread.EVERY: tuple(range(geometry.layers)),
            Spread.ONCE: (None,),
        }
        places = [(n, name) for n in layers[self.spread] for name in self.stages if _in(name, n)]
        if self.spread is not Spread.ONE:
            places += [(None, name) for name in self.stages if STAGES[name].scope is Scope.MODEL]
        return tuple(dict.fromkeys(Key(0 if name == "embedding" else n, name) for n, name in places))


def _in(name: str, layer: int | None) -> bool:
    """Whether a fault of ``layer`` may touch the stage."""
    scope = STAGES[name].scope
    return scope is Scope.FIRST_LAYER or (scope is Scope.MODEL) == (layer is None)


NEEDS: Mapping[str, Any] = {
    "biases": lambda g: g.qkv_bias,
    "head norms": lambda g: has_stage("q_norm", g, 0),
    "no head norms": lambda g: not has_stage("q_norm", g, 0),
    "window": lambda g: any(g.windows),
    "no window": lambda g: not any(g.windows),
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
    "silu": lambda g: g.activation == "silu",
}
"""What a fault can ask of a model, by its geometry."""


def _fault(name: str, stages: str, title: str, says: str, **how: Any) -> Fault:
    return Fault(name=name, title=title, stages=tuple(stages.split()), says=says, **how)


_EVERY: Any = {"spread": Spread.EVERY}
_ONCE: Any = {"spread": Spread.ONCE}
_NORMS = "attn_norm ffn_norm final_norm"
_QK = "q_post_rope k_post_rope"

# fmt: off
CATALOGUE: tuple[Fault, ...] = (
    # embedding
    _fault("embedding-next-row", "embedding", "rows of the vocabulary are off by one",
           r"rows of token id [+-] 1",
           formula=f.shifted_row, edit=t.rows_shifted("embed"), **_ONCE),
    _fault("embedding-scaled", "embedding", "embeddings times sqrt(E), as Gemma has them",
           r"\bx (sqrt\(E\)|4 )",
           formula=p.scaled(lambda g: g.hidden**0.5), edit=t.times("embed", factor=4), **_ONCE),
    _fault("embedding-one-token", "embedding", "one token reads its neighbour's row",
           r"other rows of the table|the one before",
           formula=p.one_token, **_ONCE),
    _fault("embedding-narrow", "embedding", "embeddings stored in fewer bits than declared",
           r"6 bits of precision", formula=p.coarse(6), **_ONCE),
    # norms
    _fault("norm-epsilon", _NORMS, "another family's epsilon", r"epsilon",
           formula=f.other_epsilon, config=t.epsilon(1e-3), needs=("no head norms",), **_EVERY),
    _fault("norm-epsilon-of-heads", f"{_NORMS} {_QK}", "another epsilon, in head norms too", r"epsilon",
           formula=f.other_epsilon, config=t.epsilon(1e-3), needs=("head norms",), **_EVERY),
    _fault("attn-norm-unweighted", "attn_norm", "the norm's weight is left out", r"weight ignored",
           formula=f.unweighted_norm, edit=t.filled("attn_norm", 1)),
    _fault("attn-norm-offset", "attn_norm", "1 + weight, as Gemma has it", r"1 \+ weight",
           formula=f.offset_norm, edit=t.plus("attn_norm", offset=1)),
    _fault("attn-norm-scaled", "attn_norm", "the norm's weight is 1 % too large", r"\bx 1\.01",
           formula=p.scaled(1.01), edit=t.times("attn_norm", factor=1.01)),
    _fault("attn-norm-centred", "attn_norm", "LayerNorm where RMSNorm is meant", r"LayerNorm",
           formula=f.layer_norm, needs=("rms norm",)),
    _fault("attn-norm-one-channel", "attn_norm", "one channel of the norm is 1 % off",
           r"only channel \d+: x 1\.0", formula=p.one_channel(1.01)),
    _fault("attn-norm-of-neighbour", "attn_norm", "the norm's weight of a neighbouring layer",
           r"weights of layer \d",
           formula=p.of_neighbour, edit=t.from_neighbour("attn_norm")),
    _fault("ffn-norm-of-attention", "ffn_norm", "attention's norm before the feed-forward",
           r"attn_norm for ffn_norm",
           formula=f.other_norm("attn_norm"), edit=t.exchanged_into("attn_norm", "ffn_norm")),
    _fault("ffn-norm-skipped", "ffn_norm", "the norm before the feed-forward is skipped", r"norm skipped",
           formula=p.from_input("post_attn_residual")),
    _fault("ffn-norm-narrow", "ffn_norm", "the norm is computed in bf16", r"8 bits of precision",
           formula=p.coarse(8)),
    _fault("final-norm-skipped", "final_norm", "the last norm is skipped", r"norm skipped",
           formula=p.from_input("post_ffn_residual"), **_ONCE),
    _fault("final-norm-scaled", "final_norm", "the last norm's weight is 1 % too large", r"\bx 1\.01",
           formula=p.scaled(1.01), edit=t.times("final_norm", factor=1.01), **_ONCE),
    # q, k, v
    _fault("k-and-v-swapped", "qkv_matmul", "k and v are written in the wrong order",
           r"order q\|v\|k",
           formula=f.swapped_parts("k", "v"), edit=t.exchanged("k", "v")),
    _fault("q-of-neighbour", "qkv_matmul", "q's weights of a neighbouring layer", r"weights of q of layer \d",
           edit=t.from_neighbour("q")),
    _fault("q-transposed", "qkv_matmul", "a square q weight is transposed", r"q transposed",
           edit=t.transposed("q"), needs=("square q",)),
    _fault("q-row-off", "qkv_matmul", "one row of q's weights is 1 % off", r"only channel \d",
           edit=t.row_times("q", 1.01)),
    _fault("k-column-off", "qkv_matmul", "one input channel of k is 10 % off",
           r"channel \d+ of attn_norm alone entering",
           edit=t.column_times("k", 1.1)),
    _fault("v-block-scale", "qkv_matmul", "one block's quantisation scale is doubled", r"only channel \d",
           edit=t.block_times("v", 2)),
    _fault("q-head-scaled", "qkv_matmul", "one head of q is 10 % too large", r"only [qkv] head \d",
           formula=p.one_head(1.1), edit=t.head_times("q", 1.1)),
    _fault("k-heads-reversed", "qkv_matmul", "the kv heads of k are in the wrong order",
           r"k: heads in reverse order",
           edit=t.heads_reversed("k"), needs=("groups",)),
    _fault("q-and-k-permuted", "qkv_matmul", "q and k were permuted by a conversion and not restored",
           r"rotary order interleaved", edit=t.permuted_pairs("q", "k")),
    _fault("k-unloaded", "qkv_matmul", "k's weights were never loaded", r"\bk x 0 ",
           edit=t.times("k", factor=0)),
    _fault("v-noisy", "qkv_matmul", "v went through a lossy conversion", r"no named cause fits; v head",
           edit=t.noisy("v", 0.01)),
    # biases
    _fault("k-bias-missing", "qkv_bias", "k's bias is not added", r"bias of k missing",
           formula=f.bias_times("k", 0), edit=t.times("k_bias", factor=0), needs=("biases",)),
    _fault("v-bias-missing", "qkv_bias", "v's bias is not added", r"bias of v missing",
           formula=f.bias_times("v", 0), edit=t.times("v_bias", factor=0), needs=("biases",)),
    _fault("all-biases-missing", "qkv_bias", "no bias is added, in any layer",
           r"bias of q and k and v missing", **_EVERY,
           formula=f.bias_times("qkv", 0), edit=t.times("q_bias", "k_bias", "v_bias", factor=0),
           needs=("biases",)),
    _fault("q-bias-doubled", "qkv_bias", "q's bias is added twice", r"bias of q added twice",
           formula=f.bias_times("q", 2), edit=t.times("q_bias", factor=2), needs=("biases",)),
    _fault("biases-of-neighbour", "qkv_bias", "the biases of a neighbouring layer", r"biases of layer \d",
           formula=p.of_neighbour, edit=t.from_neighbour("q_bias", "k_bias", "v_bias"), needs=("biases",)),
    # rotary embedding
    _fault("rope-base", _QK, "another rotary base", r"RoPE base \d", **_EVERY, needs=("rope",),
           formula=f.theta_times(0.01), config=t.rope_base(0.01)),
    _fault("rope-base-near", _QK, "a rotary base 10 % off", r"RoPE base \d", **_EVERY, needs=("rope",),
           formula=f.theta_times(1.1), config=t.rope_base(1.1)),
    _fault("rope-interleaved", _QK, "neighbouring channels are paired", r"rotary pairs \(0, 1\)",
           formula=f.interleaved, needs=("rope",)),
    _fault("rope-from-one", _QK, "positions are counted from 1", r"positions that start at 1",
           formula=f.positions_from(1), needs=("rope",)),
    _fault("rope-k-from-one", "k_post_rope", "k's positions are one ahead of q's",
           r"positions that start at 1",
           formula=f.positions_from(1, "k"), needs=("rope",)),
    _fault("rope-skipped", _QK, "q and k are not rotated", r"no rotation",
           formula=f.not_rotated, needs=("rope",)),
    _fault("rope-q-skipped", "q_post_rope", "q is not rotated", r"no rotation",
           formula=f.not_rotated, needs=("rope",)),
    _fault("rope-backwards", _QK, "the rotation goes the other way", r"other direction",
           formula=f.rotated_backwards, needs=("rope",)),
    _fault("rope-half", _QK, "only the first half of the pairs turns", r"only the first \d+ of \d+ pairs",
           formula=f.partly_rotated, needs=("rope",)),
    _fault("rope-narrow", _QK, "cos and sin are stored in bf16", r"cos and sin .* bf16",
           formula=f.coarse_angles, needs=("rope",)),
    _fault("rope-exponent", _QK, "theta ** (-i / D) for pair i", r"RoPE base",
           formula=f.exponent_by_pairs, needs=("rope",)),
    _fault("rope-scaling-ignored", _QK, "the model's rope scaling is ignored", r"without scaling", **_EVERY,
           formula=f.unscaled_rope, config=t.without_rope_scaling, needs=("rope scaling",)),
    _fault("rope-interpolated", _QK, "positions are halved where no scaling is meant",
           r"positions divided by 2",
           formula=f.linear_rope(2), needs=("plain rope",)),
    _fault("k-stale", "k_post_rope", "the cache holds the token before's k",
           r"the last token with the values of the one before",
           formula=p.stale_last_token),
    _fault("k-head-scaled", "k_post_rope", "one head of k is 5 % too large", r"only kv head \d+: x 1\.05",
           formula=p.one_head(1.05)),
    _fault("q-norm-skipped", "q_post_rope", "q's head norm is skipped", r"no norm before RoPE",
           formula=f.without_head_norm, needs=("head norms",)),
    _fault("k-norm-skipped", "k_post_rope", "k's head norm is skipped", r"no norm before RoPE",
           formula=f.without_head_norm, needs=("head norms",)),
    _fault("head-norm-late", _QK, "the head norm comes after the rotation", r"norm after RoPE",
           formula=f.head_norm_after_rope, needs=("head norms",)),
    _fault("q-norm-of-k", "q_post_rope", "q passes k's head norm", r"q's norm before RoPE with k's weight",
           formula=f.other_head_norm, edit=t.exchanged_into("k_norm", "q_norm"), needs=("head norms",)),
    # scores
    _fault("scores-unscaled", "attn_scores", "1/sqrt(D) is missing", r"x sqrt\(D\)",
           formula=p.scaled(lambda g: g.head_dim**0.5)),
    _fault("scores-scaled-twice", "attn_scores", "1/sqrt(D) is applied twice", r"x 1/sqrt\(D\)",
           formula=p.scaled(lambda g: g.head_dim**-0.5)),
    _fault("scores-by-hidden", "attn_scores", "1/sqrt(E) where 1/sqrt(D) is meant",
           r"x (sqrt\(D\)/sqrt\(E\)|1/2)",
           formula=p.scaled(lambda g: (g.head_dim / g.hidden) ** 0.5)),
    _fault("heads-modulo", "attn_scores", "query head h reads kv head h % K", r"kv head h % K",
           formula=f.mapped("k_post_rope", lambda h, k: h % k), needs=("groups",)),
    _fault("heads-first-only", "attn_scores", "every query head reads kv head 0",
           r"every query head reading kv head 0",
           formula=f.mapped("k_post_rope", lambda h, k: h * 0), needs=("groups",)),
    _fault("scores-one-head", "attn_scores", "one head's scores are 2 % off", r"only head \d+: x 1\.02",
           formula=p.one_head(1.02)),
    _fault("scores-soft-capped", "attn_scores", "scores are soft-capped at 50", r"soft-capped at 50",
           formula=f.soft_capped(50)),
    _fault("scores-narrow", "attn_scores", "scores are stored in 8 bits of precision", r"8 bits of precision",
           formula=p.coarse(8)),
    # softmax
    _fault("mask-missing", "attn_softmax", "tokens see the future", r"no mask",
           formula=f.masked(lambda back, s: back > -s.tokens)),
    _fault("mask-one-ahead", "attn_softmax", "tokens see the next one", r"see the next",
           formula=f.masked(lambda back, s: back >= -1)),
    _fault("mask-without-self", "attn_softmax", "tokens do not see themselves",
           r"hides each token from itself",
           formula=f.masked(lambda back, s: back > 0)),
    _fault("first-key-masked", "attn_softmax", "the first token is masked as padding",
           r"hides the first token",
           formula=f.masked(lambda back, s: (back >= 0) & (np.arange(s.tokens)[None] > 0))),
    _fault("window-one-longer", "attn_softmax", "the window is one key too long", r"window of \d", **_EVERY,
           formula=f.masked(lambda back, s: (back >= 0) & (back <= f.window_of(s))), config=t.window_by(1),
           needs=("window",)),
    _fault("window-one-shorter", "attn_softmax", "the window is one key too short", r"window of \d", **_EVERY,
           formula=f.masked(lambda back, s: (back >= 0) & (back < f.window_of(s) - 1)),
           config=t.window_by(-1),
           needs=("window",)),
    _fault("window-ignored", "attn_softmax", "the sliding window is ignored", r"no sliding window", **_EVERY,
           formula=f.masked(lambda back, s: back >= 0), config=t.without_window, needs=("window",)),
    _fault("window-invented", "attn_softmax", "a window of 3 where the model has none", r"window of 3",
           formula=f.masked(lambda back, s: (back >= 0) & (back < 3)), needs=("no window",)),
    _fault("softmax-temperature", "attn_softmax", "a temperature of 0.9", r"scores x 0\.9",
           formula=f.tempered(0.9)),
    _fault("softmax-sink", "attn_softmax", "1 is added to the denominator", r"sink",
           formula=f.with_sink),
    _fault("softmax-narrow", "attn_softmax", "softmax in bf16", r"8 bits of precision", formula=p.coarse(8)),
    _fault("sinks-left-out", "attn_softmax", "attention sinks are left out", r"sinks left out",
           formula=f.otherwise(sinks=False), needs=("sinks",)),
    _fault("sink-of-one-head", "attn_softmax", "one sink for all heads", r"sink of head 0 in every head",
           formula=f.one_sink, needs=("sinks",)),
    *(_fault(f"experts-{name}", "ffn_out", f"no {name} in the experts", says, needs=("clamp",),
             formula=f.otherwise(**{key: value})) for name, says, key, value in (
                 ("clamp", "no clamp", "expert_limit", None), ("alpha", r"within the", "expert_alpha", 1.0),
                 ("shift", "without the 1 added", "expert_shift", 0.0))),
    # attention and its projection
    _fault("values-modulo", "attention", "query head h mixes v of kv head h % K", r"kv head h % K",
           formula=f.mapped("qkv_bias", lambda h, k: h % k), needs=("groups",)),
    _fault("values-first-only", "attention", "every head mixes v of kv head 0",
           r"every query head reading kv head 0",
           formula=f.mapped("qkv_bias", lambda h, k: h * 0), needs=("groups",)),
    _fault("heads-not-transposed", "attention", "heads are written before tokens",
           r"read as \[tokens, heads, D\]",
           formula=f.heads_not_transposed),
    _fault("attention-one-head", "attention", "one head is 3 % off", r"only head \d+: x 0\.9",
           formula=p.one_head(0.97)),
    _fault("attention-one-token", "attention", "one token gets its neighbour's row",
           r"only token \d|the one before",
           formula=p.one_token),
    _fault("o-transposed", "attn_out", "a square output projection is transposed", r"o transposed",
           edit=t.transposed("o"), needs=("square q",)),
    _fault("o-heads-reversed", "attn_out", "the output projection reads heads in reverse",
           r"heads in reverse order", edit=t.heads_reversed("o")),
    _fault("o-of-neighbour", "attn_out", "the output projection of a neighbouring layer",
           r"weights of layer \d", edit=t.from_neighbour("o")),
    _fault("o-one-channel", "attn_out", "one output channel is 1 % off", r"only channel \d",
           formula=p.one_channel(1.01), edit=t.row_times("o", 1.01)),
    _fault("o-doubled", "attn_out", "the output is summed over two shards twice", r"\bx 2 ",
           formula=p.scaled(2), edit=t.times("o", factor=2)),
    _fault("attention-residual-omitted", "post_attn_residual", "the stream is not added back",
           r"layer_input left out",
           formula=f.term("layer_input", 0)),
    _fault("attention-residual-doubled", "post_attn_residual", "the stream is added twice",
           r"layer_input added twice", formula=f.term("layer_input", 2)),
    _fault("residual-of-normed", "post_attn_residual", "the normed stream is added",
           r"attn_norm for layer_input",
           formula=f.normed_stream),
    _fault("residual-saturated", "post_attn_residual", "the stream overflows f16 and is clipped",
           r"values clipped to", formula=p.saturated(0.5)),
    # feed-forward
    _fault("gate-and-up-swapped", "ffn_gate ffn_up", "gate and up are loaded in each other's place",
           r"up for gate|gate for up", edit=t.exchanged("gate", "up")),
    _fault("gate-row-off", "ffn_gate", "one row of gate is 2 % off", r"only channel \d",
           formula=p.one_channel(1.02), edit=t.row_times("gate", 1.02)),
    _fault("gate-block-scale", "ffn_gate", "one block's quantisation scale is halved", r"only channel \d",
           edit=t.block_times("gate", 0.5)),
    _fault("up-of-neighbour", "ffn_up", "up of a neighbouring layer", r"weights of layer \d",
           edit=t.from_neighbour("up")),
    _fault("up-noisy", "ffn_up", "up went through a lossy conversion", r"no named cause fits",
           edit=t.noisy("up", 0.003)),
    _fault("up-rows-shifted", "ffn_up", "up's rows are off by one", r"rows of the weight are off by one",
           edit=t.rows_shifted("up")),
    _fault("gelu-for-silu", "ffn_silu", "GELU where SiLU is meant", r"activation gelu", **_EVERY,
           formula=f.activated(f.gelu_tanh), needs=("silu",)),
    _fault("relu-for-silu", "ffn_silu", "ReLU where SiLU is meant", r"activation relu", **_EVERY,
           formula=f.activated(lambda x: np.maximum(x, 0))),
    _fault("hard-silu", "ffn_silu", "the cheap stand-in for SiLU", r"activation hard silu",
           formula=f.activated(f.hard_silu)),
    _fault("activation-skipped", "ffn_silu", "gate is not activated", r"no activation",
           formula=f.activated(lambda x: x)),
    _fault("activated-twice", "ffn_swigl", "gate is activated once more", r"activation applied twice",
           formula=f.activated_twice),
    _fault("gate-and-up-summed", "ffn_swigl", "gate and up are added", r"activated gate \+ up",
           formula=f.summed),
    _fault("swiglu-one-token", "ffn_swigl", "one token gets its neighbour's row",
           r"only token \d|the one before",
           formula=p.one_token),
    _fault("down-one-channel", "ffn_out", "one output channel is 1 % off", r"only channel \d",
           formula=p.one_channel(1.01), edit=t.row_times("down", 1.01)),
    _fault("down-four-bit", "ffn_out", "down is stored in 4 bits, undeclared", r"stored as q4_0",
           edit=t.four_bit("down")),
    _fault("down-block-scale", "ffn_out", "one block's quantisation scale is doubled", r"only channel \d",
           edit=t.block_times("down", 2)),
    _fault("down-halved", "ffn_out", "one of two shards is lost in the sum", r"\bx 1/2 ",
           formula=p.scaled(0.5), edit=t.times("down", factor=0.5)),
    _fault("ffn-residual-omitted", "post_ffn_residual", "the stream is not added back",
           r"post_attn_residual left out",
           formula=f.term("post_attn_residual", 0)),
    _fault("ffn-skipped", "post_ffn_residual", "the feed-forward block is not added", r"ffn_out left out",
           formula=f.term("ffn_out", 0)),
    _fault("layer-one-channel", "post_ffn_residual", "one channel of the stream is 1 % off",
           r"only channel \d",
           formula=p.one_channel(1.01)),
    # output head
    _fault("head-rows-shifted", "lm_head", "the head's rows are off by one",
           r"rows of the weight are off by one",
           edit=t.rows_shifted("lm_head"), needs=("own head",), **_ONCE),
    _fault("head-is-the-embedding", "lm_head", "the head is tied to the embedding, wrongly",
           r"embed for lm_head",
           edit=t.exchanged_into("embed", "lm_head"), needs=("own head",), **_ONCE),
    _fault("head-scaled", "lm_head", "logits are scaled", r"\bx (0\.25|1/4) ", formula=p.scaled(0.25),
           **_ONCE),
    _fault("head-soft-capped", "lm_head", "logits are soft-capped at 30", r"soft-capped at 30",
           formula=f.soft_capped(30), **_ONCE),
    _fault("head-of-token-before", "lm_head", "logits of the token before the last",
           r"token \d+ instead of the last",
           formula=f.logits_of_token_before, **_ONCE),
)
# fmt: on


def fault_named(name: str) -> Fault:
    """Return the row called ``name``."""
    return next(fault for fault in CATALOGUE if fault.name == name)
