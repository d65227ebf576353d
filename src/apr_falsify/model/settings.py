"""What a config.json says, read key by key; and the readings that several families share.

A family's ``settings`` takes a :class:`Config` and returns what it says beyond the usual sizes: keywords of
``Geometry``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.limits import MAX_LAYERS
from apr_falsify.model.rope import Rope, rope_of_config, share_of
from apr_falsify.reading import flag, items, number, whole

Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """The values of a config.json, under their usual names and with the family's defaults.

    Every method raises ``KeyError`` where a key without a default is missing, and ``ValueError`` where a
    value is of another type.
    """

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """Return a value as it stands."""
        return self.values[key]

    def get(self, key: str, otherwise: Any = None) -> Any:
        """Return a value as it stands, or ``otherwise``."""
        return self.values.get(key, otherwise)

    def flag(self, key: str, otherwise: bool = False) -> bool:
        """Return a value that is true or false."""
        return flag(self.values.get(key, otherwise), key)

    def number(self, key: str, otherwise: float | None = None) -> float:
        """Return a number."""
        return number(self.values[key] if otherwise is None else self.values.get(key, otherwise), key)

    def whole(self, key: str, otherwise: int | None = None) -> int:
        """Return a whole number."""
        return whole(self.values[key] if otherwise is None else self.values.get(key, otherwise), key)

    @property
    def layers(self) -> int:
        """The number of layers; checked here already, as rows per layer are made from it."""
        layers = self.whole("num_hidden_layers")
        if not 1 <= layers <= MAX_LAYERS:
            raise GeometryError(
                f"num_hidden_layers is {layers}", expected=f"a whole number from 1 to {MAX_LAYERS}"
            )
        return layers

    @property
    def head_dim(self) -> int:
        """The width of a head; where it is not stated, the heads share the hidden size evenly."""
        heads, stated = self.whole("num_attention_heads"), self.get("head_dim")
        return self.whole("hidden_size") // max(heads, 1) if stated is None else self.whole("head_dim")


Settings = Callable[[Config], Mapping[str, Any]]


def nothing(config: Config) -> Mapping[str, Any]:
    """Say nothing beyond the usual sizes."""
    return {}


def attention_bias(config: Config) -> Mapping[str, bool]:
    """Read ``attention_bias``: of q, k, v and the output projection alike."""
    biased = config.flag("attention_bias")
    return {"qkv_bias": biased, "output_bias": biased}


def refuse(config: Config, *keys: str) -> None:
    """Refuse a config that switches on what has no formula here.

    Raises:
        GeometryError: one of ``keys`` is set to something.

    """
    for key in keys:
        if config.get(key):
            raise GeometryError(f"{key} is {config[key]}", expected=f"a model without {key}")


def softcap(config: Config, key: str) -> float | None:
    """Read a soft-cap, ``None`` where there is none."""
    return None if config.get(key) is None else config.number(key)


def same_scale(config: Config, scale: float) -> tuple[float, ...]:
    """Return the scale of the scores where all layers have the same."""
    return (scale,) * config.layers


def query_scalar(config: Config) -> tuple[float, ...]:
    """Read ``query_pre_attn_scalar``: scores are multiplied with 1 / sqrt of it."""
    scalar = config.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise GeometryError(f"query_pre_attn_scalar is {scalar}", expected="a number above 0")
    return same_scale(config, scalar**-0.5)


def window_everywhere(config: Config) -> Windows:
    """Read ``sliding_window`` of a family in which all layers have it."""
    size = config.get("sliding_window")
    return (None if size is None else config.whole("sliding_window"),) * config.layers


def window_where_used(config: Config) -> Windows:
    """Read ``sliding_window``, which ``use_sliding_window`` switches for all layers."""
    if config.get("sliding_window") is None or not config.flag("use_sliding_window"):
        return (None,) * config.layers
    return window_everywhere(config)


def window_by_layer(config: Config) -> Windows:
    """Read ``use_sliding_window`` and ``layer_types``; without them layers from ``max_window_layers`` on."""
    if config.get("sliding_window") is None or not config.flag("use_sliding_window"):
        return (None,) * config.layers
    if (kinds := config.get("layer_types")) is not None:
        return window_by_type(config, kinds)
    full = config.whole("max_window_layers", config.layers)
    return tuple(None if n < full else config.whole("sliding_window") for n in range(config.layers))


def window_by_pattern(config: Config, every: int) -> Windows:
    """Read ``layer_types``; without them all layers but each ``every``-th have the window."""
    if config.get("sliding_window") is None:
        return (None,) * config.layers
    if (kinds := config.get("layer_types")) is not None:
        return window_by_type(config, kinds)
    size = config.whole("sliding_window")
    stated = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", every))
    every = whole(stated, "sliding_window_pattern")
    return tuple(None if every and (n + 1) % every == 0 else size for n in range(config.layers))


def window_where(config: Config, slides: Callable[[int], bool]) -> Windows:
    """Read ``layer_types``; without them the layers have the window of which ``slides`` says so."""
    if config.get("sliding_window") is None:
        return (None,) * config.layers
    if (kinds := config.get("layer_types")) is not None:
        return window_by_type(config, kinds)
    size = config.whole("sliding_window")
    return tuple(size if slides(n) else None for n in range(config.layers))


def window_by_type(config: Config, kinds: Any) -> Windows:
    """Return the window of each layer that is called ``sliding_attention``."""
    size = config.whole("sliding_window")
    return tuple(size if _slides(kind) else None for kind in items(kinds, "layer_types"))


def _slides(kind: object) -> bool:
    return is_kind(kind, "sliding_attention", "full_attention")


def is_kind(kind: object, wanted: str, other: str) -> bool:
    """Whether a layer is of one kind and not of the other.

    Raises:
        GeometryError: it is of neither.

    """
    if kind not in (wanted, other):
        raise GeometryError(f"the layer type {kind!r} has no formula here", expected=f"{other} or {wanted}")
    return kind == wanted


def rotated_layers(config: Config) -> tuple[bool, ...]:
    """Read ``no_rope_layers``, which is 1 for a layer that is rotated; without it, the interval.

    Raises:
        GeometryError: an interval below 1.

    """
    if stated := config.get("no_rope_layers"):
        return tuple(bool(layer) for layer in items(stated, "no_rope_layers"))[: config.layers]
    every = _interval(config, "no_rope_layer_interval", 4)
    return tuple((layer + 1) % every != 0 for layer in range(config.layers))


def _interval(config: Config, key: str, usual: int) -> int:
    every = config.whole(key, usual)
    if every < 1:
        raise GeometryError(f"{key} is {every}", expected="a whole number above 0")
    return every


def experts(config: Config) -> Mapping[str, Any]:
    """Read what is known of mixtures of experts; every ``decoder_sparse_step``-th layer is one."""
    stated = config.get("num_experts", config.get("num_local_experts"))
    if stated is None:
        return {}
    layers, count = config.layers, whole(stated, "num_experts")
    step = config.whole("decoder_sparse_step", 1)
    if step < 1:
        raise GeometryError(f"decoder_sparse_step is {step}", expected="a whole number above 0")
    dense = items(config.get("mlp_only_layers") or [], "mlp_only_layers")
    return {
        "experts": count,
        "experts_per_token": config["num_experts_per_tok"],
        "moe_intermediate": config["moe_intermediate_size"],
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "mixtures": tuple(n not in dense and count > 0 and (n + 1) % step == 0 for n in range(layers)),
    }


def listed_mixtures(config: Config) -> Mapping[str, Any]:
    """Read ``mlp_layer_types``, which says of each layer whether it is a mixture, where it is there."""
    if (kinds := config.get("mlp_layer_types")) is None:
        return {}
    return {"mixtures": tuple(_is_sparse(kind) for kind in items(kinds, "mlp_layer_types"))}


def _is_sparse(kind: object) -> bool:
    if kind not in ("dense", "sparse"):
        raise GeometryError(f"the layer kind {kind!r} has no formula here", expected="dense or sparse")
    return kind == "sparse"


def refuse_others(config: Config, key: str, *known: object) -> None:
    """Refuse a config that says something else of ``key`` than what is ``known``, or nothing.

    Raises:
        GeometryError: it does.

    """
    if key in config.values and config[key] not in known:
        raise GeometryError(
            f"{key} is {config[key]!r}, which has no formula here", expected=" or ".join(map(repr, known))
        )


def corrected_experts(config: Config) -> Mapping[str, Any]:
    """Read the mixture of DeepSeek-V3: a sigmoid router with groups and a correction, and shared experts."""
    refuse_others(config, "scoring_func", "sigmoid")
    refuse_others(config, "topk_method", "noaux_tc")
    groups = config.get("n_group") or 1
    return {
        **routed_and_shared(config),
        "router_scoring": "sigmoid",
        "router_corrected": True,
        "expert_groups": groups,
        "expert_groups_chosen": config.get("topk_group") or 1,
        "group_best": 1 if groups == 1 else 2,
    }


def routed_and_shared(config: Config) -> Mapping[str, Any]:
    """Read how many experts DeepSeek's mixtures have, how wide they are, and which layers are mixtures.

    The first ``first_k_dense_replace`` layers have none; the shared experts lie in one, as wide as all of
    them.
    """
    refuse_others(config, "moe_layer_freq", 1)
    width = config.whole("moe_intermediate_size")
    return {
        "experts": config.whole("n_routed_experts"),
        "experts_per_token": config["num_experts_per_tok"],
        "moe_intermediate": width,
        "shared_intermediate": whole(config.get("n_shared_experts") or 0, "n_shared_experts") * width,
        "norm_topk_prob": config.flag("norm_topk_prob"),
        "routed_scale": config.number("routed_scaling_factor", 1.0),
        "mixtures": tuple(n >= config.whole("first_k_dense_replace", 0) for n in range(config.layers)),
    }


def latent_attention(config: Config) -> Mapping[str, Any]:
    """Read latent attention (``model/latent.py``): latents, heads of two sizes, the scale of the scores.

    Raises:
        GeometryError: heads of k and v that are shared, rotary pairs that lie half-split, or rotary channels
            that are not rotated.

    """
    heads, rotary = config.whole("num_attention_heads"), config.whole("qk_rope_head_dim")
    head_dim = config.whole("qk_nope_head_dim") + rotary
    if config.get("num_key_value_heads") not in (None, heads):
        raise GeometryError(
            f"num_key_value_heads is {config['num_key_value_heads']}",
            expected=f"{heads}: latent attention makes k and v of every head",
        )
    refuse_others(config, "rope_interleave", True)
    rope = rope_of_config(config.values)
    if rope.share != 1.0:
        raise GeometryError(
            f"only a share of {rope.share} of a head's rotary channels is rotated", expected="all of them"
        )
    return {
        "kv_heads": heads,
        "head_dim": head_dim,
        "v_head_dim": config.whole("v_head_dim"),
        "q_latent": config.whole("q_lora_rank") if config.get("q_lora_rank") is not None else 0,
        "kv_latent": config.whole("kv_lora_rank"),
        "output_bias": config.flag("attention_bias"),
        "rope": replace(rope, parameters={**rope.parameters, **share_of(rotary, head_dim)}),
        "attn_scales": same_scale(config, yarn_in_scale(rope) / math.sqrt(head_dim)) if head_dim > 0 else (),
    }


def yarn_in_scale(rope: Rope) -> float:
    """Return by what DeepSeek's YaRN multiplies the scale of the scores: the square of its magnitude."""
    weight, factor = rope.parameters.get("mscale_all_dim", 0.0), rope.parameters.get("factor", 1.0)
    if rope.kind == "default" or not weight or factor <= 1:
        return 1.0
    return (0.1 * weight * math.log(factor) + 1) ** 2


def layers_of(config: Config, kind: str, other: str, every: int) -> tuple[bool, ...]:
    """Return which layers ``layer_types`` calls ``kind``, not ``other``; without it each ``every``-th.

    Raises:
        GeometryError: a layer type of another name, or another number of them than of layers.

    """
    kinds = config.get("layer_types")
    if kinds is None:
        every = _interval(config, "full_attention_interval", every)
        return tuple((n + 1) % every == 0 for n in range(config.layers))
    return tuple(is_kind(each, kind, other) for each in _one_a_layer(items(kinds, "layer_types"), config))


def _one_a_layer(kinds: Sequence[Any], config: Config) -> Sequence[Any]:
    if len(kinds) != config.layers:
        raise GeometryError(
            f"{len(kinds)} layer kinds for {config.layers} layers",
            expected="one a layer: num_hidden_layers or the list of kinds is wrong",
        )
    return kinds


_KINDS: Mapping[str, str] = {"mamba": "linear_attention", "attention": "full_attention"}
"""What configs called layer kinds before transformers 5 -> what they call them now."""


def layer_kinds(config: Config, known: tuple[str, ...], usual: str | None = None) -> tuple[str, ...]:
    """Return each layer's kind by ``layer_types`` or ``layers_block_type``; without them all are ``usual``.

    Raises:
        GeometryError: a kind that is not ``known``, another number of them than of layers, or none stated
            where no kind is ``usual``.

    """
    stated = config.get("layer_types") or config.get("layers_block_type")
    if stated is None:
        if usual is None:
            raise GeometryError(
                "config.json has no layers_block_type", expected=f"a list of {' or '.join(known)}"
            )
        stated = [usual] * config.layers
    kinds = tuple(
        _KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in items(stated, "layer_types")
    )
    for kind in kinds:
        if kind not in known:
            raise GeometryError(f"the layer kind {kind!r} has no formula here", expected=" or ".join(known))
    return tuple(_one_a_layer(kinds, config))


def step_limits(config: Config, key: str) -> tuple[float, float | None]:
    """Read the least and the largest step of a state space, ``None`` for a largest that is infinite.

    Infinity is no JSON: transformers writes it as ``{"__float__": "Infinity"}``.
    """
    if config.get(key) is None:
        return 0.0, None
    limits = items(config[key], key)
    if len(limits) != 2:
        raise GeometryError(f"{key} has {len(limits)} values", expected="the least step and the largest")
    infinite = limits[1] in ("Infinity", math.inf, {"__float__": "Infinity"})
    return number(limits[0], key), None if infinite else number(limits[1], key)
