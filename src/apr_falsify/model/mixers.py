"""Layers that mix tokens without attention: a gated delta rule, a state space, or a short convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apr_falsify.errors import GeometryError
from apr_falsify.model.limits import ACTIVATIONS
from apr_falsify.reading import flag, mapping, number, text, whole


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """The sizes of a selective state space (Mamba-2, Dao & Gu 2024) behind a short convolution of x, B and C.

    Attributes:
        kernel: how many tokens the convolution sees, itself included.
        heads: heads of x, each with a state [head_dim, state].
        head_dim: the width of a head of x.
        groups: heads of B and C; each serves heads / groups of x, neighbours. The gated norm goes over the
            channels of a group.
        state: the width of a head of B and C.
        activation: what follows the convolution.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections before and after have one.
        least_step: what a step dt is raised to.
        largest_step: what it is lowered to, ``None`` for no bound.

    """

    kernel: int
    heads: int
    head_dim: int
    groups: int
    state: int
    activation: str = "silu"
    conv_bias: bool = True
    bias: bool = False
    least_step: float = 0.0
    largest_step: float | None = None

    @property
    def channels(self) -> int:
        """The channels of x."""
        return self.heads * self.head_dim

    def dims(self, hidden: int) -> dict[str, int]:
        """Return the size of each axis word of its stages and weights."""
        return {
            "conv": self.channels + 2 * self.groups * self.state,
            "conv_kernel": self.kernel,
            "scan": self.channels,
            "scan_heads": self.heads,
            "scan_dim": self.head_dim,
            "one": 1,
        }

    def check(self) -> None:
        """Check the sizes, and the bounds of a step.

        Raises:
            GeometryError: a size is none, heads cannot share the groups evenly, or no step is within bounds.

        """
        for name in ("kernel", "heads", "head_dim", "groups", "state"):
            _check_size(name, getattr(self, name))
        if self.heads % self.groups:
            raise GeometryError(f"{self.heads} heads cannot share {self.groups} groups of B and C evenly")
        flag(self.conv_bias, "a convolution's bias")
        flag(self.bias, "the bias of a state space's projections")
        if text(self.activation, "a convolution's activation") not in ACTIVATIONS:
            raise GeometryError(
                f"the activation {self.activation!r} has no formula here", expected=", ".join(ACTIVATIONS)
            )
        least = number(self.least_step, "the least step")
        if least < 0 or (self.largest_step is not None and number(self.largest_step, "the largest") < least):
            raise GeometryError(f"no step dt lies from {least} to {self.largest_step}")


Mixer = GatedDelta | ShortConv | StateSpace

_MOST = 1 << 20


def _check_size(name: str, value: object) -> None:
    if not 1 <= whole(value, name) <= _MOST:
        raise GeometryError(f"{name} is {value}", expected=f"a whole number from 1 to {_MOST}")


def mixer_of_json(data: object) -> Mixer | None:
    """Read what a geometry's JSON holds of it."""
    if data is None:
        return None
    values: Mapping[str, Any] = mapping(data, "mixer")
    if "key_heads" in values:
        return GatedDelta(**values)
    return StateSpace(**values) if "state" in values else ShortConv(**values)
