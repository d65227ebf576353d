"""The sizes and constants of one model, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from apr_falsify.errors import AprFalsifyError, GeometryError, LayerRangeError
from apr_falsify.model.limits import check_constants, check_optional, check_ropes, check_sizes
from apr_falsify.model.mixers import Mixer, mixer_of_json
from apr_falsify.model.rope import Rope
from apr_falsify.reading import items, mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes and constants of one model.

    Attributes:
        family: our name for its family.
        layers: number of decoder layers.
        hidden: E, the width of the residual stream.
        heads: H, query heads.
        kv_heads: K, key/value heads; query head h reads h // (H / K).
        head_dim: D, the width of a head of q and of k.
        v_head_dim: that of a head of v, 0 for the same; see :attr:`value_dim`.
        q_latent: the width of the latent that q is made of in latent attention, 0 for none.
        kv_latent: the width of the one that k and v are made of, 0 where attention has no latents. Where it
            has, the last channels of a head are rotated, not the first.
        intermediate: F, the width of the feed-forward block.
        vocab: V.
        norm_eps: epsilon of every norm.
        rope: the rotary embedding; one that turns nothing where positions are learned.
        local_rope: that of the layers with a window, where it is another one.
        rotated: per layer, whether q and k are rotated at all; empty where all are.
        activation: the feed-forward block's activation.
        windows: per layer, how many keys back a token sees (itself included), ``None`` for all.
        chunks: per layer, how many tokens form a chunk beyond which none sees, ``None`` for no chunks; empty
            where no layer has them.
        temperature_scale: c where the queries of a layer without RoPE are multiplied with
            1 + c * log(1 + floor((t + 1) / f)) at token t, 0 where they are not.
        temperature_floor: that f, in tokens.
        mixer: what mixes tokens in the layers without attention, ``None`` where there are none.
        attends: per layer, whether it has attention; empty where all have.
        feeds: per layer, whether a feed-forward block is all that it has; empty where each layer has one
            beside what mixes tokens.
        qkv_bias: whether q, k, v have a bias.
        qk_normed: whether q and k pass a norm, where a config switches that.
        output_bias: whether the output projection has one; and, in latent attention, what makes the latents.
        mlp_bias: whether gate, up and down have one.
        head_bias: whether the output head has one.
        parallel: whether the feed-forward block reads what enters the layer, as attention does, and both are
            added to it together.
        tied: whether the output head is the embedding table.
        attn_scales: per layer, what q.k is multiplied with; empty for 1 / sqrt(D).
        attn_softcap: c where scores are c * tanh(score / c), ``None`` for no cap.
        final_softcap: the same of the logits.
        embed_scale: what embeddings are multiplied with.
        residual_scale: what a block's output is multiplied with before it is added to the stream.
        logit_scale: what logits are multiplied with.
        positions: how many learned positions there are, 0 for none.
        experts: X, the experts of a mixture, 0 for none.
        experts_per_token: k, how many of them a token is given to.
        moe_intermediate: the width of one expert.
        shared_intermediate: the width of the expert that every token is given to besides, 0 for none.
        shared_gated: whether what that expert makes of a token is multiplied with a sigmoid of its own.
        weighted_input: whether an expert's weight is multiplied with what it is given, not what it makes.
        expert_bias: whether the router's and the experts' projections have a bias.
        expert_limit: how far an expert's gate (upwards) and up (both ways) reach, ``None`` for no clamp.
        expert_alpha: what the gate is multiplied with within the sigmoid of its activation.
        expert_shift: what is added to up.
        sinks: whether the softmax of each head has a learned logit in its denominator.
        norm_topk_prob: whether the weights of the chosen experts are made to sum to 1.
        router_scoring: what makes scores of a router's logits: a softmax over all experts, or a sigmoid of
            each.
        router_corrected: whether experts are chosen by their scores plus a learned correction each, which
            their weights are without.
        expert_groups: how many groups of neighbours the experts form, of which a token is first given to
            some.
        expert_groups_chosen: how many groups those are; only their experts can be chosen.
        group_best: of how many of a group's best experts the scores are added to rank it.
        routed_sum_eps: what is added to the sum by which they are made to sum to 1.
        routed_scale: what the weights of the chosen experts are multiplied with in the end.
        mixtures: per layer, whether its feed-forward block is a mixture of experts; empty for none.

    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    rope: Rope
    v_head_dim: int = 0
    q_latent: int = 0
    kv_latent: int = 0
    activation: str = "silu"
    windows: tuple[int | None, ...] = ()
    chunks: tuple[int | None, ...] = ()
    mixer: Mixer | None = None
    attends: tuple[bool, ...] = ()
    temperature_scale: float = 0.0
    temperature_floor: float = 1.0
    feeds: tuple[bool, ...] = ()
    qkv_bias: bool = False
    qk_normed: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    parallel: bool = False
    tied: bool = False
    local_rope: Rope | None = None
    rotated: tuple[bool, ...] = ()
    attn_scales: tuple[float, ...] = ()
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    positions: int = 0
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0
    shared_intermediate: int = 0
    shared_gated: bool = False
    weighted_input: bool = False
    expert_bias: bool = False
    expert_limit: float | None = None
    expert_alpha: float = 1.0
    expert_shift: float = 0.0
    sinks: bool = False
    norm_topk_prob: bool = False
    router_scoring: str = "softmax"
    router_corrected: bool = False
    expert_groups: int = 1
    expert_groups_chosen: int = 1
    group_best: int = 1
    routed_scale: float = 1.0
    routed_sum_eps: float = 0.0
    mixtures: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_sizes(self)
            if not self.windows:
                object.__setattr__(self, "windows", (None,) * self.layers)
            check_constants(self)
            check_ropes(self)
            check_optional(self)
        except ValueError as error:
            raise GeometryError(str(error)) from error

    def dims(self, tokens: int) -> dict[str, int]:
        """Return the size of each axis word of ``stages.py`` for a run of ``tokens`` tokens."""
        dims = {
            "tokens": tokens,
            "hidden": self.hidden,
            "heads": self.heads,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "v": self.kv_heads * self.value_dim,
            "qkv": (self.heads + self.kv_heads) * self.head_dim + self.kv_heads * self.value_dim,
            "mixed": self.heads * self.value_dim,
            "ffn": self.intermediate,
            "vocab": self.vocab,
            "head_dim": self.head_dim,
            "v_head_dim": self.value_dim,
        }
        if self.kv_latent:
            rotary = self.rope.width(self.head_dim)
            dims |= {"q_latent": self.q_latent, "kv_latent": self.kv_latent, "rotary": rotary}
            dims["kv_up"] = self.kv_heads * (self.head_dim - rotary + self.value_dim)
        if self.mixer is not None:
            dims |= self.mixer.dims(self.hidden)
        if self.positions:
            dims["positions"] = self.positions
        if self.experts:
            dims["experts"] = self.experts
            dims["chosen_experts"] = self.experts_per_token
            dims["expert_ffn"] = self.moe_intermediate
            dims["one"] = 1
        if self.shared_intermediate:
            dims["shared_ffn"] = self.shared_intermediate
        return dims

    @property
    def value_dim(self) -> int:
        """Dv, the width of a head of v and of the mix."""
        return self.v_head_dim or self.head_dim

    def rotary_start(self, layer: int | None) -> int:
        """Return the first channel of a head that is rotated in ``layer``."""
        return self.first_of(self.rope_at(layer).width(self.head_dim))

    def first_of(self, width: int) -> int:
        """Return the first channel of a head that is rotated where ``width`` are."""
        return self.head_dim - width if self.kv_latent else 0

    def rope_at(self, layer: int | None) -> Rope:
        """Return the rotary embedding of ``layer``, one that turns nothing where it has none."""
        if self.rotated and layer is not None and not self.rotated[layer]:
            return replace(self.rope, kind="none")
        local = self.local_rope is not None and layer is not None and self.windows[layer] is not None
        return self.local_rope if local and self.local_rope is not None else self.rope

    def attends_at(self, layer: int) -> bool:
        """Whether ``layer`` has attention."""
        return not self.attends or self.attends[layer]

    def feeds_at(self, layer: int) -> bool:
        """Whether ``layer`` has a feed-forward block alone."""
        return bool(self.feeds) and self.feeds[layer]

    def chunk_at(self, layer: int | None) -> int | None:
        """Return how many tokens form a chunk in ``layer``, ``None`` where it has no chunks."""
        return self.chunks[layer] if self.chunks and layer is not None else None

    def attn_scale_at(self, layer: int | None) -> float:
        """Return what q.k is multiplied with in ``layer``."""
        assert layer is not None, "layers may differ in it, and the whole model has none"
        return self.attn_scales[layer] if self.attn_scales else 1 / math.sqrt(self.head_dim)

    def is_mixture(self, layer: int | None) -> bool:
        """Whether the feed-forward block of ``layer`` is a mixture of experts."""
        return layer is not None and bool(self.mixtures) and self.mixtures[layer]

    def check_layers(self, layers: range) -> range:
        """Return ``layers`` if the model has them all.

        Raises:
            LayerRangeError: it reaches beyond the first or the last layer.

        """
        if layers.start < 0 or layers.stop > self.layers:
            raise LayerRangeError(
                f"layers {layers.start}..{layers.stop} reach beyond the model",
                expected=f"a range within 0..{self.layers}",
                remedy=f"--layers {max(0, min(layers.start, self.layers - 1))}..{self.layers}",
            )
        return layers

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: object = None) -> Geometry:
        """Read what :meth:`to_json` wrote.

        Raises:
            GeometryError: a key is missing, unknown, or of another type.

        """
        try:
            values = dict(mapping(data, "the geometry"))
            values["rope"] = _rope_of_json(values["rope"])
            if values.get("local_rope") is not None:
                values["local_rope"] = _rope_of_json(values["local_rope"])
            values["mixer"] = mixer_of_json(values.get("mixer"))
            for name in ("windows", "attn_scales", "mixtures", "rotated", "chunks", "attends", "feeds"):
                values[name] = tuple(items(values.get(name, []), name))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError(f"the geometry cannot be read: {error}", where=where) from error
        except AprFalsifyError as error:
            raise error.at(where) from None


EXPERT_ROLES = ("expert_gate", "expert_up", "expert_down")
"""The roles of an expert's three projections; expert e's own are ``expert_gate.e`` and so on."""

EXPERT_BIASES = ("expert_gate_bias", "expert_up_bias", "expert_down_bias")
"""The roles of their biases; expert e's own are ``expert_gate_bias.e`` and so on."""

SHARED_ROLES = ("shared_gate", "shared_up", "shared_down")
"""The roles of the projections of an expert that every token is given to."""


def _rope_of_json(data: object) -> Rope:
    rope = dict(mapping(data, "rope"))
    for name in ("divisors", "long_divisors"):
        rope[name] = tuple(items(rope.get(name, []), f"rope {name}"))
    return Rope(**rope)
