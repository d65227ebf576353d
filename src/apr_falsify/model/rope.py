"""Rotary embedding as models state it: base, scaling rule and that rule's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.reading import items, mapping, number, text, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base, scaling rule and that rule's parameters, as config.json names them.

    Attributes:
        theta: the base.
        kind: ``default``, ``linear``, ``llama3``, ``yarn``, ``longrope``, ``divided`` or ``none``.
        parameters: the rule's own parameters (``factor``, ``beta_fast`` ...).
        divisors: for ``divided``: what each pair's frequency is divided by (GGUF's ``rope_freqs``); for
            ``longrope``: the same for runs within the original context.
        long_divisors: for ``longrope``: the same for longer runs.

    """

    theta: float
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """The share of each head's channels that is rotated, the first ones."""
        return self.parameters.get("partial_rotary_factor", 1.0)

    def width(self, head_dim: int) -> int:
        """Return how many of a head's ``head_dim`` channels are rotated."""
        return int(head_dim * self.share)


ROPE_KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings"),
    "divided": (),
    "none": (),
}
"""The rotary scaling rules that have a formula here, and the parameters each cannot do without.

``none`` rotates nothing; no config names it.
"""

_DEFAULT_THETA = 10_000.0  # what transformers and llama.cpp take where a model names none


def check_rope(rope: Rope, head_dim: int) -> None:
    """Check that ``rope`` has a formula here, with parameters for which it is defined.

    Raises:
        GeometryError: an unknown rule, or a parameter that is missing or makes no sense.
        ValueError: a value of the wrong type.

    """
    if not isinstance(rope, Rope):
        raise GeometryError(f"the rotary embedding is {rope!r}", expected="a rule and its parameters")
    if number(rope.theta, "rope theta") <= 0:
        raise GeometryError(f"rope theta is {rope.theta}", expected="a number above 0")
    required = ROPE_KINDS.get(text(rope.kind, "the rope scaling"))
    if required is None:
        raise GeometryError(f"rope scaling {rope.kind!r} has no formula here", expected=", ".join(ROPE_KINDS))
    values = {
        name: number(value, f"the rope parameter {name}")
        for name, value in mapping(rope.parameters, "the rope parameters").items()
    }
    missing = [name for name in required if name not in values]
    if missing:
        raise GeometryError(f"rope scaling {rope.kind!r} lacks {', '.join(missing)}")
    _check_values(rope, values)
    _check_divisors(rope, head_dim)


def _check_values(rope: Rope, values: Mapping[str, float]) -> None:
    for name in ROPE_KINDS[rope.kind]:
        if values[name] <= 0:
            raise GeometryError(f"the rope parameter {name} is {values[name]}", expected="a number above 0")
    if rope.kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
        raise GeometryError("low_freq_factor is not below high_freq_factor")
    if rope.kind == "longrope" and values["original_max_position_embeddings"] <= 1:
        raise GeometryError("the original context is a single token", expected="at least 2 tokens")
    if rope.kind == "yarn":
        _check_yarn(rope.theta, values)


def _check_yarn(theta: float, values: Mapping[str, float]) -> None:
    if theta <= 1:
        raise GeometryError(f"rope theta is {theta}", expected="a number above 1 with yarn scaling")
    for name in ("beta_fast", "beta_slow", "attention_factor"):
        if values.get(name, 1.0) < 0:
            raise GeometryError(f"the rope parameter {name} is {values[name]}", expected="no negative number")


def _check_divisors(rope: Rope, head_dim: int) -> None:
    width = rope.width(head_dim)
    if not 2 <= width <= head_dim or width % 2:
        raise GeometryError(
            f"{width} of {head_dim} channels of a head are rotated",
            expected="an even number: RoPE turns pairs",
        )
    wanted = {"divided": (rope.divisors,), "longrope": (rope.divisors, rope.long_divisors)}
    for divisors in wanted.get(rope.kind, ()):
        if len(divisors) != width // 2:
            raise GeometryError(f"{len(divisors)} rope divisors for {width // 2} pairs")
    if any(number(value, "a rope divisor") <= 0 for value in (*rope.divisors, *rope.long_divisors)):
        raise GeometryError("a rope divisor is not above 0")


def local_ropes_of_config(config: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of layers without and with a window, where a family has two.

    ``rope_parameters`` by layer type, as transformers 5 saves them, or the older ``rope_scaling`` and
    ``rope_theta`` (without a window) and ``rope_local_base_freq`` (with one).

    Raises:
        GeometryError: a rule without a formula here.
        ValueError: a value of the wrong type.

    """
    nested = mapping(config.get("rope_parameters") or {}, "the rope parameters")
    full = dict(mapping(nested.get("full_attention") or {}, "the rope parameters"))
    full.update(mapping(config.get("rope_scaling") or {}, "the rope scaling"))
    local = dict(mapping(nested.get("sliding_attention") or {}, "the rope parameters"))
    full.setdefault("rope_theta", config["rope_theta"])
    local.setdefault("rope_theta", config["rope_local_base_freq"])
    rest = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_parameters")}
    return rope_of_config({**rest, "rope_scaling": full}), rope_of_config({**rest, "rope_scaling": local})


def rope_of_config(config: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> Rope:
    """Return the rotary embedding that a config.json describes.

    Where a value stands in more than one place, transformers' order decides: ``rope_scaling`` before
    ``rope_parameters``, and within them before the top level.

    Args:
        config: the config.
        aliases: the family's own words for scaling rules.

    Raises:
        GeometryError: parameters by layer type.
        ValueError: a value of the wrong type.

    """
    scaling = mapping(config.get("rope_scaling") or config.get("rope_parameters") or {}, "the rope scaling")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise GeometryError("the rope parameters differ by layer type; there is no formula for that here")
    theta = scaling.get("rope_theta", config.get("rope_theta", _DEFAULT_THETA))
    kind = text(scaling.get("rope_type", scaling.get("type", "default")), "rope_type")
    kind = (aliases or {}).get(kind, kind)
    if kind in ("divided", "none"):
        raise GeometryError(f"rope scaling {kind!r} has no formula here", expected=", ".join(ROPE_KINDS))
    parameters = {
        key: float(value) if isinstance(value, bool) else number(value, f"the rope parameter {key}")
        for key, value in scaling.items()
        if key not in ("rope_theta", "rope_type", "type") and isinstance(value, int | float)
    }
    if "partial_rotary_factor" in config:
        parameters.setdefault("partial_rotary_factor", number(config["partial_rotary_factor"], "its factor"))
    if kind in ("yarn", "llama3", "longrope"):
        _complete_context(parameters, config)
    rope = Rope(theta=number(theta, "rope_theta"), kind=kind, parameters=parameters)
    return _longrope(rope, scaling, config) if kind == "longrope" else rope


def _longrope(rope: Rope, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> Rope:
    """Return ``rope`` with a divisor a pair for short and for long contexts, and the context's growth."""
    parameters = dict(rope.parameters)
    if "factor" not in parameters:
        longest = number(config["max_position_embeddings"], "max_position_embeddings")
        parameters["factor"] = longest / max(parameters["original_max_position_embeddings"], 1)
    return replace(
        rope,
        parameters=parameters,
        divisors=_factors(scaling, "short_factor"),
        long_divisors=_factors(scaling, "long_factor"),
    )


def _factors(scaling: Mapping[str, Any], name: str) -> tuple[float, ...]:
    return tuple(number(value, name) for value in items(scaling[name], name))


def _complete_context(parameters: dict[str, float], config: Mapping[str, Any]) -> None:
    name = "original_max_position_embeddings"
    if config.get(name) is not None:
        parameters[name] = number(config[name], name)
    elif name not in parameters and "max_position_embeddings" in config:
        parameters[name] = number(config["max_position_embeddings"], "max_position_embeddings")


_GGUF_YARN: Mapping[str, str] = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


def rope_of_gguf(
    optional: Callable[[str, Any], Any],
    tensors: Mapping[str, tuple[float, ...]],
    head_dim: int,
    *,
    partial: bool = False,
) -> Rope:
    """Return the rotary embedding that GGUF metadata describes.

    Args:
        optional: gives the value of an architecture's key, or the default that it is handed.
        tensors: the content of the tensors ``rope_freqs``, ``rope_factors_short`` and ``rope_factors_long``,
            by these names, where the file has them.
        head_dim: the width of a head.
        partial: whether a part of each head may be left as it is.

    Raises:
        GeometryError: only a part of each head is rotated, where ``partial`` is false.
        ValueError: a value of the wrong type.

    """
    theta = number(optional("rope.freq_base", _DEFAULT_THETA), "rope.freq_base")
    share = _share_of_gguf(optional, head_dim, partial)
    kind = text(optional("rope.scaling.type", "none"), "rope.scaling.type")
    if tensors.get("rope_factors_short") or kind == "longrope":
        return _longrope_of_gguf(optional, tensors, theta, share)
    if divisors := tensors.get("rope_freqs"):
        return Rope(theta=theta, kind="divided", parameters=share, divisors=divisors)
    if kind == "none":
        return Rope(theta=theta, parameters=share)
    parameters = {"factor": number(optional("rope.scaling.factor", 1.0), "rope.scaling.factor"), **share}
    for key, name in _GGUF_YARN.items():
        if (value := optional(key, None)) is not None:
            parameters[name] = number(value, key)
    return Rope(theta=theta, kind=kind, parameters=parameters)


def _share_of_gguf(optional: Callable[[str, Any], Any], head_dim: int, partial: bool) -> dict[str, float]:
    width = whole(optional("rope.dimension_count", head_dim), "rope.dimension_count")
    if width == head_dim:
        return {}
    if not partial:
        raise GeometryError(f"rope.dimension_count is {width}", expected=f"{head_dim}, as the keys' width")
    return share_of(width, head_dim)


def share_of(width: int, head_dim: int) -> dict[str, float]:
    """Return the parameter by which a rotary embedding turns ``width`` of a head's ``head_dim`` channels."""
    share = width / max(head_dim, 1)
    return {"partial_rotary_factor": share if int(head_dim * share) == width else math.nextafter(share, 2)}


def _longrope_of_gguf(
    optional: Callable[[str, Any], Any],
    tensors: Mapping[str, tuple[float, ...]],
    theta: float,
    parameters: dict[str, float],
) -> Rope:
    context = optional("rope.scaling.original_context_length", None)
    if context is None or not {"rope_factors_short", "rope_factors_long"} <= tensors.keys():
        raise GeometryError(
            "longrope without its original context, or without both tensors of its divisors",
            expected="rope.scaling.original_context_length, and rope_factors_short and _long",
        )
    context = number(context, "rope.scaling.original_context_length")
    longest = number(optional("context_length", context), "context_length")
    parameters = {
        **parameters,
        "original_max_position_embeddings": context,
        "factor": longest / max(context, 1),
    }
    if (factor := optional("rope.scaling.attn_factor", None)) is not None:
        parameters["attention_factor"] = number(factor, "rope.scaling.attn_factor")
    return Rope(
        theta=theta,
        kind="longrope",
        parameters=parameters,
        divisors=tensors["rope_factors_short"],
        long_divisors=tensors["rope_factors_long"],
    )
