"""Layers that mix tokens otherwise than by attention: a gated delta rule, or a short convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.reading import flag, mapping, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta:
    """The sizes of a gated delta rule (Yang et al. 2024) behind a short convolution of q, k and v.

    Attributes:
        kernel: how many tokens the convolution sees, itself included.
        key_heads: heads of q and k; each serves value_heads / key_heads of v, neighbours.
        value_heads: heads of v, each with a state [key_dim, value_dim].
        key_dim: the width of a head of q and k.
        value_dim: that of a head of v.

    """

    kernel: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """The channels of q, or of k."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """The channels of v."""
        return self.value_heads * self.value_dim

    def dims(self, hidden: int) -> dict[str, int]:
        """Return the size of each axis word of its stages and weights."""
        return {
            "conv": 2 * self.keys + self.values,
            "conv_kernel": self.kernel,
            "scan": self.values,
            "scan_heads": self.value_heads,
            "scan_dim": self.value_dim,
            "one": 1,
        }

    def check(self) -> None:
        """Check the sizes.

        Raises:
            GeometryError: one is none, or value heads that cannot share the key heads evenly.

        """
        for name in self.__slots__:
            _check_size(name, getattr(self, name))
        if self.value_heads % self.key_heads:
            raise GeometryError(
                f"{self.value_heads} value heads cannot share {self.key_heads} key heads evenly"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv:
    """A gated short convolution over the hidden channels (Liquid AI 2025).

    Attributes:
        kernel: how many tokens it sees, itself included.
        bias: whether it and its projections have a bias.

    """

    kernel: int
    bias: bool = False

    def dims(self, hidden: int) -> dict[str, int]:
        """Return the size of each axis word of its stages and weights."""
        return {"conv": hidden, "conv_parts": 3 * hidden, "conv_kernel": self.kernel, "one": 1}

    def check(self) -> None:
        """Check the sizes.

        Raises:
            GeometryError: a kernel that is none.

        """
        _check_size("kernel", self.kernel)
        flag(self.bias, "a convolution's bias")


Mixer = GatedDelta | ShortConv

_MOST = 1 << 20


def _check_size(name: str, value: object) -> None:
    if not 1 <= whole(value, name) <= _MOST:
        raise GeometryError(f"{name} is {value}", expected=f"a whole number from 1 to {_MOST}")


def mixer_of_json(data: object) -> Mixer | None:
    """Read what a geometry's JSON holds of it."""
    if data is None:
        return None
    values: Mapping[str, Any] = mapping(data, "mixer")
    return GatedDelta(**values) if "key_heads" in values else ShortConv(**values)
