"""What a GGUF file's metadata says, read key by key; and the readings that several families share.

A family's ``gguf_settings`` takes a :class:`Gguf` and returns what the file says beyond the usual sizes:
keywords of ``Geometry``. The keys are those of the GGUF specification and of llama.cpp, which also has
constants of some architectures in its code: a pattern of windows, say, which a file may leave out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.limits import MAX_LAYERS
from apr_falsify.model.rope import Rope, rope_of_gguf
from apr_falsify.model.settings import Windows, yarn_in_scale
from apr_falsify.reading import flag, items, number, whole

_HARMLESS = frozenset(
    {
        "context_length",
        "vocab_size",
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",  # a rule that needs it reads it
        "attention.causal",  # refused where it is false
    }
)
"""Keys of an architecture that change no formula."""

_OFF: tuple[object, ...] = ("", "none", [], ())


@dataclass(frozen=True, slots=True)
class Gguf:
    """The metadata of a GGUF file under its architecture's prefix, and the shapes of its tensors.

    Every method raises ``KeyError`` where a key without a default is missing, and ``ValueError`` where a
    value is of another type.

    Attributes:
        values: key without the prefix -> value.
        tensors: name -> shape, rows first.
        divisors: the content of the tensors ``rope_freqs``, ``rope_factors_short`` and ``rope_factors_long``,
            by these names, where the file has them.
        read: the keys that were read.

    """

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    divisors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Any:
        """Return a value as it stands."""
        self.read.add(key)
        return self.values[key]

    def get(self, key: str, otherwise: Any = None) -> Any:
        """Return a value as it stands, or ``otherwise``."""
        self.read.add(key)
        return self.values.get(key, otherwise)

    def number(self, key: str, otherwise: float | None = None) -> float:
        """Return a number."""
        return number(self[key] if otherwise is None else self.get(key, otherwise), key)

    def whole(self, key: str, otherwise: int | None = None) -> int:
        """Return a whole number."""
        return whole(self[key] if otherwise is None else self.get(key, otherwise), key)

    def flag(self, key: str, otherwise: bool = False) -> bool:
        """Return a value that is true or false."""
        return flag(self.get(key, otherwise), key)

    @property
    def layers(self) -> int:
        """The number of layers; checked here already, as rows per layer are made from it."""
        layers = self.whole("block_count")
        if not 1 <= layers <= MAX_LAYERS:
            raise GeometryError(f"layers is {layers}", expected=f"a whole number from 1 to {MAX_LAYERS}")
        return layers

    @property
    def head_dim(self) -> int:
        """The width of a head; where it is not stated, the heads share the width of the stream evenly.

        With latent attention the plain key is that of what is cached.
        """
        heads = self.whole("attention.head_count")
        plain = self.whole("attention.key_length", self.whole("embedding_length") // max(heads, 1))
        return self.whole("attention.key_length_mla", plain)

    def rope(self, *, partial: bool) -> Rope:
        """Return the rotary embedding, which may turn a part of each head only where ``partial``."""
        return rope_of_gguf(self.get, self.divisors, self.head_dim, partial=partial)

    def refuse_what_was_not_read(self) -> None:
        """Refuse a key that nothing has read, unless it changes no formula or switches something off.

        Raises:
            GeometryError: there is one.

        """
        if not flag(self.values.get("attention.causal", True), "attention.causal"):
            raise GeometryError("tokens attend to later ones", expected="a model with causal attention")
        for key, value in self.values.items():
            if key not in self.read and key not in _HARMLESS and value and value not in _OFF:
                raise GeometryError(
                    f"the key {key} is {value}, which has no formula here for this architecture",
                    expected="keys that llama.cpp writes for it",
                )


GgufSettings = Callable[[Gguf], Mapping[str, Any]]


def nothing(gguf: Gguf) -> Mapping[str, Any]:
    """Say nothing beyond the usual sizes."""
    return {}


def layer_norm_eps(gguf: Gguf) -> Mapping[str, Any]:
    """Read the epsilon of LayerNorms."""
    gguf.get("attention.layer_norm_rms_epsilon")  # nemotron's files have it too, with the same value
    return {"norm_eps": gguf["attention.layer_norm_epsilon"]}


def windows(gguf: Gguf, every: int) -> Windows:
    """Read the window; without a pattern in the file all layers but each ``every``-th have it, 0: none."""
    size, layers = gguf.get("attention.sliding_window"), gguf.layers
    pattern = gguf.get("attention.sliding_window_pattern", every)
    if size is None or whole(size, "attention.sliding_window") == 0:
        return (None,) * layers
    if isinstance(pattern, list):
        slides = [bool(flag(each, "a layer's window")) for each in items(pattern, "the window pattern")]
        if len(slides) != layers:
            raise GeometryError(f"a window pattern of {len(slides)} layers for {layers} layers")
        return tuple(size if each else None for each in slides)
    every = whole(pattern, "attention.sliding_window_pattern")
    return tuple(size if every == 0 or (n + 1) % every else None for n in range(layers))


def softcap(gguf: Gguf, key: str, otherwise: float | None = None) -> float | None:
    """Read a soft-cap; one of 0 is none, as llama.cpp takes it."""
    cap = gguf.get(key, otherwise)
    return number(cap, key) if cap else None


def experts(gguf: Gguf, *, normed: bool, width: str = "expert_feed_forward_length") -> Mapping[str, Any]:
    """Read a mixture of experts in every layer.

    Args:
        gguf: the metadata.
        normed: whether llama.cpp makes the weights of the chosen experts sum to 1 in this architecture, where
            the file does not say.
        width: the key of an expert's width.

    """
    if gguf.get("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise GeometryError(
            f"expert_weights_scale is {gguf['expert_weights_scale']}", expected="weights that are not scaled"
        )
    gguf.get("expert_group_count")
    return {
        "experts": gguf["expert_count"],
        "experts_per_token": gguf["expert_used_count"],
        "moe_intermediate": gguf[width],
        "norm_topk_prob": gguf.flag("expert_weights_norm", normed),
        "mixtures": (True,) * gguf.layers,
    }


SOFTMAX, _SIGMOID = 1, 2
"""The values of ``expert_gating_func`` for a softmax and a sigmoid."""

_SCORING: Mapping[str, int] = {"softmax": SOFTMAX, "sigmoid": _SIGMOID}


def scored_experts(gguf: Gguf, scoring: str) -> Mapping[str, Any]:
    """Read a mixture in every layer whose router makes scores in one way: where a file says it, in that one.

    Raises:
        GeometryError: it says another.

    """
    if (function := gguf.whole("expert_gating_func", _SCORING[scoring])) != _SCORING[scoring]:
        raise GeometryError(f"expert_gating_func is {function}", expected=f"{_SCORING[scoring]}, a {scoring}")
    return {**experts(gguf, normed=True), "router_scoring": scoring}


def latent_attention(gguf: Gguf) -> Mapping[str, Any]:
    """Read latent attention, as ``settings.latent_attention`` reads it of a config.json.

    The plain keys are those of what is cached: one head, of the latent and the rotated channels. Files
    of before that say the heads' own there.
    """
    heads, head_dim = gguf.whole("attention.head_count"), gguf.head_dim
    rope, latent = gguf.rope(partial=True), gguf.whole("attention.kv_lora_rank")
    weight = gguf.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    if rope.kind == "yarn" and weight:
        scales = {"mscale": weight, "mscale_all_dim": weight}
        rope = replace(rope, parameters={**rope.parameters, **scales})
    values = gguf.whole("attention.value_length", head_dim)
    return {
        "kv_heads": heads,
        "v_head_dim": gguf.whole("attention.value_length_mla", values),
        "q_latent": gguf.whole("attention.q_lora_rank", 0),
        "kv_latent": latent,
        "rope": rope,
        "attn_scales": (yarn_in_scale(rope) / math.sqrt(head_dim),) * gguf.layers,
    }


def sections(gguf: Gguf) -> Mapping[str, Any]:
    """Read what M-RoPE and images need beside a text model; in text its three positions are equal."""
    gguf.get("rope.dimension_sections")
    gguf.get("n_deepstack_layers")
    return {}


def corrected_experts(gguf: Gguf) -> Mapping[str, Any]:
    """Read the mixture of DeepSeek-V3, as ``settings.corrected_experts`` reads it of a config.json."""
    if (function := gguf.whole("expert_gating_func", _SIGMOID)) != _SIGMOID:
        raise GeometryError(f"expert_gating_func is {function}", expected=f"{_SIGMOID}, a sigmoid")
    found = routed_and_shared(gguf)
    dense, groups = gguf.whole("leading_dense_block_count", 0), gguf.whole("expert_group_count", 1) or 1
    return {
        **found,
        "router_scoring": "sigmoid",
        "router_corrected": f"blk.{dense}.exp_probs_b.bias" in gguf.tensors,
        "expert_groups": groups,
        "expert_groups_chosen": gguf.whole("expert_group_used_count", 1) or 1,
        "group_best": 1 if groups == 1 else 2,
    }


def routed_and_shared(gguf: Gguf) -> Mapping[str, Any]:
    """Read how many experts DeepSeek's mixtures have, how wide they are, and which layers are mixtures.

    Layers that predict further tokens come last, and the forward pass of the next one does without them.
    """
    layers = gguf.layers - gguf.whole("nextn_predict_layers", 0)
    dense, width = gguf.whole("leading_dense_block_count", 0), gguf.whole("expert_feed_forward_length")
    return {
        "layers": layers,
        "experts": gguf["expert_count"],
        "experts_per_token": gguf["expert_used_count"],
        "moe_intermediate": width,
        "shared_intermediate": gguf.whole("expert_shared_count", 0) * width,
        "norm_topk_prob": gguf.flag("expert_weights_norm"),
        "routed_scale": gguf.number("expert_weights_scale", 1.0) or 1.0,
        "mixtures": tuple(n >= dense for n in range(layers)),
    }
