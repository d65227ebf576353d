"""What the axes of a compared stage mean: its heads, and a place in it in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from apr_falsify.model.mixers import GatedDelta, StateSpace
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import HEAD_WIDTHS, STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The meaning of a stage's axes.

    Attributes:
        names: what one position of each axis is called (``token``, ``head``, ``channel`` ...).
        head_dim: D, the number of last-axis positions of one head; ``None`` where that axis holds no heads,
            or heads of two widths.
        heads: what the heads within the last axis are called, in their order.
        context: what every position has in common, for words (``last token``); empty for nothing.
        first_token: the token of the first row, where not all were recorded.

    """

    names: tuple[str, ...]
    head_dim: int | None = None
    heads: tuple[str, ...] = ()
    context: str = ""
    first_token: int = 0

    def words(self, at: tuple[int, ...]) -> str:
        """Return the place ``at`` (one index per axis) in words: ``token 3, head 2, channel 17``.

        A channel that belongs to a head is counted within it, from 0.
        """
        *leading, last = at
        parts = [self.context] if self.context else []
        parts += [
            f"{name} {index + (self.first_token if name == 'token' else 0)}"
            for name, index in zip(self.names, leading, strict=False)
        ]
        if self.head_dim is not None:
            parts.append(self.heads[last // self.head_dim])
            last %= self.head_dim
        return ", ".join([*parts, f"{self.names[-1]} {last}"])

    def from_token(self, first: int) -> Axes:
        """Return the axes of what is left when the rows begin with token ``first``."""
        return replace(self, first_token=first) if first else self

    def of_last_token(self) -> Axes:
        """Return the axes of what is left when only the last token is stored."""
        return replace(self, names=self.names[1:], context="last token")


_NAMES: Mapping[str, str] = {
    "tokens": "token",
    "heads": "head",
    "vocab": "vocabulary entry",
    "experts": "expert",
    "scan_heads": "head",
    "chosen_experts": "chosen expert",
}
"""Axis word of ``stages.py`` -> one position of it; every other word is of channels."""

_HEADS: Mapping[str, Callable[[Geometry], tuple[str, ...]]] = {
    "q": lambda geometry: _numbered("head", geometry.heads),
    "kv": lambda geometry: _numbered("kv head", geometry.kv_heads),
    "mixed": lambda geometry: _numbered("head", geometry.heads),
    "qkv": lambda geometry: (
        *_numbered("q head", geometry.heads),
        *_numbered("k head", geometry.kv_heads),
        *_numbered("v head", geometry.kv_heads),
    ),
}
"""Axis word -> the heads that lie side by side in it."""


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name} {index}" for index in range(count))


def axes_of(name: str, geometry: Geometry, first_token: int = 0) -> Axes:
    """Return the meaning of the canonical axes of stage ``name`` in a model of ``geometry``.

    ``first_token`` is the token of the first row.
    """
    words = STAGES[name].axes
    names = [_NAMES.get(word, "channel") for word in words]
    if words[-1] == "tokens":
        names[-1] = "key"
    axis = words[-1]
    # Heads of two widths lie side by side in q|k|v of latent attention: no one width tells them apart.
    alike = axis != "qkv" or geometry.value_dim == geometry.head_dim
    heads = _HEADS[axis](geometry) if axis in _HEADS and alike else ()
    width = geometry.dims(1)[HEAD_WIDTHS.get(axis, "head_dim")] if heads else None
    if axis == "scan" and isinstance(geometry.mixer, GatedDelta):
        heads, width = _numbered("head", geometry.mixer.value_heads), geometry.mixer.value_dim
    if axis == "scan" and isinstance(geometry.mixer, StateSpace):
        heads, width = _numbered("head", geometry.mixer.heads), geometry.mixer.head_dim
    return Axes(names=tuple(names), head_dim=width, heads=heads, first_token=first_token)
