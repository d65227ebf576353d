"""8-bit numbers with one scale for a group of values: KV caches and activations of serving runtimes.

What shares a scale is said by the axes that it spans. Integers: scale = max|x| / 127, integer = rint(x /
scale), ties to even, in f32; with a zero point scale = (max - min) / steps over a range that holds 0. 8-bit
floats (Micikevicius et al. 2022: e4m3 up to 448, e5m2 up to 57344): x / scale, rounded to nearest, ties to
even, and kept within their range. Runtimes multiply with the reciprocal of a scale as well: a value on the
edge between two steps then falls to either side, which :meth:`Grain.steps` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.numerics.blocks import Steps, rounding_steps

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]

_LARGEST_INT = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8:
    """An 8-bit float.

    Attributes:
        digits: the binary digits of its significand.
        least: the exponent of its smallest number.
        largest: its largest number.

    """

    digits: int
    least: int
    largest: float

    def round(self, values: Values) -> F32:
        """Return ``values`` rounded to nearest, ties to even, and to the largest number beyond it."""
        with np.errstate(invalid="ignore"):
            exponent = np.maximum(np.frexp(values)[1] - self.digits, self.least)
            rounded = np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)
        kept: F32 = np.clip(rounded, -self.largest, self.largest).astype(np.float32)
        return kept


FLOATS: Mapping[str, Float8] = {
    "fp8 e4m3": Float8(digits=4, least=-9, largest=448.0),
    "fp8 e5m2": Float8(digits=3, least=-16, largest=57344.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grain:
    """Values in 8 bits, with one scale for all that lie along ``axes``; called, what is left of them.

    Attributes:
        axes: the axes that a scale spans; ``None`` for a scale of 1.
        float8: the number format, ``None`` for integers.
        zero_point: of integers: how many steps there are from the least value to the largest, where 0 is one
            of them but not their middle; 0 for integers from -127 to 127.
        spans: how many tokens came together, where a scale spans tokens: those of a pass share one. Of fewer
            values than that, the last ones are meant.

    """

    axes: tuple[int, ...] | None
    float8: Float8 | None = None
    zero_point: int = 0
    spans: tuple[int, ...] = ()

    def __call__(self, values: Values) -> F64:
        """Return what is left of ``values``."""
        parts = self._parts(values)
        return self._left(values) if len(parts) == 1 else np.concatenate([self._left(part) for part in parts])

    def _left(self, values: Values) -> F64:
        scale, quants, offset = self._quantised(values)
        with np.errstate(invalid="ignore"):
            return (quants.astype(np.float64) - offset) * scale

    def steps(self, values: Values) -> Steps:
        """Return where ``values`` lie between the steps."""
        found = [self._steps(part) for part in self._parts(values)]
        if len(found) == 1:
            return found[0]
        return Steps(
            quants=np.concatenate([each.quants for each in found]),
            scale=np.concatenate([each.scale for each in found]),
            fraction=np.concatenate([each.fraction for each in found]),
            flip=np.concatenate([each.flip for each in found]),
        )

    def _parts(self, values: Values) -> list[Values]:
        """Return the tokens of each pass, all of ``values`` where these are not whole passes."""
        if len(self.spans) < 2 or not self.over_tokens:
            return [values]
        starts = len(values) - np.cumsum(self.spans[::-1])[::-1]
        if 0 not in starts:
            return [values]
        return np.split(values, starts[starts > 0])

    def _steps(self, values: Values) -> Steps:
        scale, quants, offset = self._quantised(values)
        wide = np.broadcast_to(scale, values.shape).astype(np.float64)
        scaled = np.divide(values.astype(np.float64), wide, out=np.zeros(values.shape), where=wide != 0)
        if self.float8 is not None:
            found = rounding_steps(
                self.float8.round, scaled, digits=self.float8.digits, least=self.float8.least
            )
            inside = np.abs(scaled) < self.float8.largest
            fraction = np.where(inside, found.fraction, 0.5)
            return Steps(quants=found.quants, scale=found.scale * wide, fraction=fraction, flip=found.flip)
        edge = np.floor(scaled) + 0.5
        whole: F64 = quants.astype(np.float64) - offset
        flip = np.where(whole > edge, -1.0, 1.0)
        return Steps(quants=whole, scale=wide, fraction=np.abs(scaled - edge), flip=flip)

    def _axes_of(self, x: Values) -> tuple[int, ...]:
        """Return the axes of ``x`` that a scale spans: one token alone has no axis of tokens."""
        return tuple(axis for axis in self.axes or () if axis < x.ndim)

    @property
    def over_tokens(self) -> bool:
        """Whether several tokens share a scale, where their axis is the first."""
        return self.axes is not None and 0 in self.axes

    def _quantised(self, values: Values) -> tuple[F64, F32, F64 | float]:
        """Return the scales, what they multiply, and the zero points."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._of_finite(values.astype(np.float32, copy=False))

    def _of_finite(self, x: F32) -> tuple[F64, F32, F64 | float]:
        if self.zero_point:
            return self._from_zero(x)
        largest = _LARGEST_INT if self.float8 is None else self.float8.largest
        scale = np.ones((1,) * x.ndim, np.float32)
        if self.axes is not None:
            scale = np.max(np.abs(x), axis=self._axes_of(x), keepdims=True) / np.float32(largest)
        scaled = _over(x, scale)
        if self.float8 is not None:
            return scale.astype(np.float64), self.float8.round(scaled), 0.0
        return scale.astype(np.float64), np.clip(np.rint(scaled), -_LARGEST_INT, _LARGEST_INT), 0.0

    def _from_zero(self, x: F32) -> tuple[F64, F32, F64]:
        axes = self._axes_of(x)
        low = np.minimum(np.min(x, axis=axes, keepdims=True), np.float32(0))
        high = np.maximum(np.max(x, axis=axes, keepdims=True), np.float32(0))
        scale = ((high.astype(np.float64) - low) / self.zero_point).astype(np.float32)
        offset = np.clip(np.rint(-_over(low, scale)), 0, self.zero_point)
        quants = np.clip(np.rint(_over(x, scale)) + offset, 0, self.zero_point)
        return scale.astype(np.float64), quants, offset.astype(np.float64)


def _over(x: F32, scale: F32) -> F32:
    """Return x / scale, 0 where the scale is 0."""
    shape = np.broadcast_shapes(x.shape, scale.shape)
    return np.divide(x, scale, out=np.zeros(shape, np.float32), where=np.broadcast_to(scale != 0, shape))


SPANS: Mapping[str, tuple[int, ...]] = {
    "token and head": (2,),
    "token": (1, 2),
    "channel": (0,),
    "head": (0, 2),
    "tensor": (0, 1, 2),
}
"""What a scale of cached keys or values [tokens, kv_heads, head_dim] is for -> the axes that it spans."""


def caches() -> dict[str, Grain]:
    """Return the KV caches in 8 bits: the type with `{}` where its k or v stands -> what is left of heads."""
    found = {f"int8 {{}} cache, a scale per {each}": Grain(axes=axes) for each, axes in SPANS.items()}
    for name, kept in FLOATS.items():
        found[f"{name} {{}} cache"] = Grain(axes=None, float8=kept)
        for each in ("tensor", "head", "token and head"):
            found[f"{name} {{}} cache, a scale per {each}"] = Grain(axes=SPANS[each], float8=kept)
    return found


ACTIVATIONS: Mapping[str, Grain] = {
    "int8 activations, a scale per token": Grain(axes=(-1,)),
    "int8 activations, a scale per tensor": Grain(axes=(0, 1)),
    "int8 activations, a scale and a zero point per token": Grain(axes=(-1,), zero_point=255),
    "int8 activations, a scale and a zero point per tensor": Grain(axes=(0, 1), zero_point=255),
    "7-bit activations, a scale and a zero point per tensor": Grain(axes=(0, 1), zero_point=127),
    "7-bit activations, a scale and a zero point per token": Grain(axes=(-1,), zero_point=127),
    "fp8 e4m3 activations": Grain(axes=None, float8=FLOATS["fp8 e4m3"]),
    "fp8 e4m3 activations, a scale per token": Grain(axes=(-1,), float8=FLOATS["fp8 e4m3"]),
    "fp8 e4m3 activations, a scale per tensor": Grain(axes=(0, 1), float8=FLOATS["fp8 e4m3"]),
}
"""Dynamic activations of products [tokens, channels]. Of 7 bits are those of torch's ``quantize_dynamic`` on
x86 (``reduce_range``), measured on a recording: 4e-8 is left, and 1.5e-2 by any other row."""
