"""How large and of what kind the sizes and constants of a model may be.

``geometry`` is a ``shape.Geometry``, which checks itself with these as it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.rope import check_rope
from apr_falsify.reading import flag, number, text, whole

# Far above any published model; below them a wrong file cannot ask for an absurd allocation.
_LIMITS: Mapping[str, int] = {
    "layers": 1024,
    "hidden": 65_536,
    "heads": 1024,
    "kv_heads": 1024,
    "head_dim": 4096,
    "intermediate": 1 << 20,
    "vocab": 1 << 22,
}
_OPTIONAL_LIMITS: Mapping[str, int] = {
    "positions": 1 << 22,
    "v_head_dim": 4096,
    "q_latent": 65_536,
    "kv_latent": 65_536,
    "experts": 4096,
    "experts_per_token": 4096,
    "moe_intermediate": 1 << 20,
    "shared_intermediate": 1 << 20,
    "expert_groups": 4096,
    "expert_groups_chosen": 4096,
    "group_best": 4096,
}
"""The same for sizes that are 0 in models without the thing."""

MAX_LAYERS = _LIMITS["layers"]


SCORINGS: tuple[str, ...] = ("softmax", "sigmoid")
"""What makes scores of a router's logits."""

ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")
"""The feed-forward activations that have a formula, by the name that config.json uses."""


def check_sizes(geometry: Any) -> None:
    """Check that the sizes are whole and within their limits, and that heads divide.

    Raises:
        GeometryError: one is not.
        ValueError: a value of another type.

    """
    for name, limit in _LIMITS.items():
        value = whole(getattr(geometry, name), name)
        if not 1 <= value <= limit:
            raise GeometryError(f"{name} is {value}", expected=f"a whole number from 1 to {limit}")
    if geometry.heads % geometry.kv_heads:
        raise GeometryError(f"{geometry.heads} query heads cannot share {geometry.kv_heads} kv heads evenly")
    if geometry.head_dim % 2:
        raise GeometryError(f"head_dim is {geometry.head_dim}", expected="an even number: RoPE turns pairs")


def check_ropes(geometry: Any) -> None:
    """Check the rotary embeddings, or that positions are learned.

    Raises:
        GeometryError: one is not.
        ValueError: a value of another type.

    """
    for rope in (geometry.rope, *((geometry.local_rope,) if geometry.local_rope is not None else ())):
        check_rope(rope, geometry.head_dim)
    if (geometry.rope.kind == "none") != (geometry.positions > 0):
        raise GeometryError(
            f"rope scaling {geometry.rope.kind!r} with {geometry.positions} learned positions",
            expected="a rotary embedding, or learned positions",
        )


def check_optional(geometry: Any) -> None:
    """Check what not every model has: scales, caps, lists by layer, mixers and mixtures.

    Raises:
        GeometryError: one is not.
        ValueError: a value of another type.

    """
    for name, limit in _OPTIONAL_LIMITS.items():
        value = whole(getattr(geometry, name), name)
        if not 0 <= value <= limit:
            raise GeometryError(f"{name} is {value}", expected=f"a whole number from 0 to {limit}")
    scales = [number(value, "a scale of the scores") for value in geometry.attn_scales]
    caps = [cap for cap in (geometry.attn_softcap, geometry.final_softcap) if cap is not None]
    factors = [
        *scales,
        *(number(cap, "a soft-cap") for cap in caps),
        number(geometry.embed_scale, "embed_scale"),
        number(geometry.residual_scale, "residual_scale"),
        number(geometry.logit_scale, "logit_scale"),
        number(geometry.routed_scale, "routed_scale"),
    ]
    if any(value <= 0 for value in factors):
        raise GeometryError("a scale or a soft-cap is not above 0")
    for name in ("attn_scales", "mixtures", "rotated", "chunks", "attends", "feeds"):
        if len(getattr(geometry, name)) not in (0, geometry.layers):
            raise GeometryError(f"{len(getattr(geometry, name))} {name} for {geometry.layers} layers")
    if not all(geometry.attends):
        if geometry.mixer is None:
            raise GeometryError("layers without attention", expected="what mixes tokens in them")
        geometry.mixer.check()
    _check_mixtures(geometry)


def _check_mixtures(geometry: Any) -> None:
    flag(geometry.norm_topk_prob, "norm_topk_prob")
    for name in ("shared_gated", "weighted_input", "expert_bias", "sinks"):
        flag(getattr(geometry, name), name)
    number(geometry.expert_shift, "expert_shift")
    if number(geometry.routed_sum_eps, "routed_sum_eps") < 0:
        raise GeometryError(f"routed_sum_eps is {geometry.routed_sum_eps}", expected="at least 0")
    for name in ("expert_alpha", "expert_limit"):
        value = getattr(geometry, name)
        if value is not None and number(value, name) <= 0:
            raise GeometryError(f"{name} is {value}", expected="a number above 0")
    flag(geometry.router_corrected, "router_corrected")
    if geometry.router_scoring not in SCORINGS:
        raise GeometryError(
            f"the router's scoring {geometry.router_scoring!r} has no formula here",
            expected=" or ".join(SCORINGS),
        )
    kinds = [flag(mixture, "a layer's kind") for mixture in geometry.mixtures]
    if True not in kinds:
        return
    if not 1 <= geometry.experts_per_token <= geometry.experts or not geometry.moe_intermediate:
        raise GeometryError(
            f"{geometry.experts_per_token} of {geometry.experts} experts, {geometry.moe_intermediate} wide"
        )
    _check_groups(geometry)


def _check_groups(geometry: Any) -> None:
    groups, chosen = geometry.expert_groups, geometry.expert_groups_chosen
    if not 1 <= chosen <= groups or geometry.experts % groups:
        raise GeometryError(f"{chosen} of {groups} groups of {geometry.experts} experts")
    size = geometry.experts // groups
    if not 1 <= geometry.group_best <= size or geometry.experts_per_token > chosen * size:
        raise GeometryError(
            f"{geometry.experts_per_token} experts of {chosen} groups of {size}, "
            f"ranked by the best {geometry.group_best} of each"
        )


def check_constants(geometry: Any) -> None:
    """Check the flags, windows, chunks, the temperature, the epsilon and the activation.

    Raises:
        GeometryError: one is not.
        ValueError: a value of another type.

    """
    text(geometry.family, "the family")
    for name in (
        "qkv_bias",
        "qk_normed",
        "output_bias",
        "mlp_bias",
        "head_bias",
        "parallel",
        "tied",
    ):
        flag(getattr(geometry, name), name)
    for name in ("rotated", "attends", "feeds"):
        for each in getattr(geometry, name):
            flag(each, f"one of {name}")
    if len(geometry.windows) != geometry.layers:
        raise GeometryError(f"{len(geometry.windows)} attention windows for {geometry.layers} layers")
    for what, sizes in (("an attention window", geometry.windows), ("a chunk", geometry.chunks)):
        for size in sizes:
            if size is not None and whole(size, what) < 1:
                raise GeometryError(f"{what} is {size}", expected="a whole number above 0")
    if number(geometry.temperature_scale, "a temperature") < 0 or not geometry.temperature_floor >= 1:
        raise GeometryError(
            f"an attention temperature of {geometry.temperature_scale} each {geometry.temperature_floor}",
            expected="a number of at least 0, and of at least 1 token",
        )
    if number(geometry.norm_eps, "norm_eps") < 0:
        raise GeometryError(f"norm_eps is {geometry.norm_eps}", expected="a small number of at least 0")
    if geometry.activation not in ACTIVATIONS:
        raise GeometryError(
            f"the activation {geometry.activation!r} has no formula here", expected=", ".join(ACTIVATIONS)
        )
