"""Tensors as a forward pass uses them: rotary pairs half-split, q apart from k and v, an expert alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.tensors import FloatArray, QuantisedTensor, Tensor
from apr_falsify.numerics.arithmetic import Format

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewedTensor:
    """A tensor seen as a forward pass uses it; its values are worked out as rows are requested.

    Attributes:
        base: the tensor as the file holds it.
        view: what is made of it.

    """

    base: Tensor
    view: View

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is seen."""
        return self.view.shape(self.base)

    @property
    def type(self) -> str:
        """The number format it is stored in."""
        return self.base.type

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of what is seen."""
        return self.view.rows(self.base, start, stop)


class View(Protocol):
    """What is made of a tensor's rows."""

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of what is seen of ``base``."""

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of what is seen of ``base``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfSplit:
    """A q or k projection whose file holds interleaved rotary pairs, seen half-split.

    GGUF conversion of the llama family stores row 2i and 2i+1 of a head where the original has
    rows i and i + D/2. Where only ``width`` channels of a head are rotated, from ``begin`` on, the others
    stay.
    """

    head_dim: int
    width: int | None = None
    begin: int = 0

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of ``base``."""
        return base.shape

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return the rows in half-split order."""
        first, last = start // self.head_dim * self.head_dim, -(-stop // self.head_dim) * self.head_dim
        return self.of_whole_heads(base.rows(first, last))[start - first : stop - first]

    def of_whole_heads(self, rows: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """Return [heads * head_dim, ...], which has a row for each of the tensor's, in half-split order."""
        return self._regrouped(rows, interleaved=True)

    def as_stored(self, rows: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """Return rows in half-split order as the file holds them: what undoes :meth:`of_whole_heads`."""
        return self._regrouped(rows, interleaved=False)

    def _regrouped(self, rows: npt.NDArray[_Number], interleaved: bool) -> npt.NDArray[_Number]:
        width = self.head_dim if self.width is None else self.width
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        groups = (width // 2, 2) if interleaved else (2, width // 2)
        before, rotated, after = np.split(heads, [self.begin, self.begin + width], axis=1)
        pairs = rotated.reshape(-1, *groups, *rows.shape[1:])
        turned = np.swapaxes(pairs, 1, 2).reshape(-1, width, *rows.shape[1:])
        return np.concatenate((before, turned, after), axis=1).reshape(rows.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeRows:
    """Some rows of a tensor in which several roles lie one below the other."""

    start: int
    count: int

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of these rows; what lies beyond the whole tensor is not counted."""
        held = max(0, min(self.count, base.shape[0] - self.start))
        return (held, *base.shape[1:])

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of these."""
        stop = min(stop, self.shape(base)[0])
        return base.rows(self.start + min(start, stop), self.start + stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsqueezed:
    """A tensor with axes of 1 that its file leaves out."""

    to: tuple[int, ...]

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape with these axes."""
        return self.to

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of what is seen."""
        if self.to[0] == 1:
            return base.rows(0, base.shape[0]).reshape(self.to)[start:stop]
        return base.rows(start, stop).reshape(-1, *self.to[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRows:
    """Some rows of a tensor, in an order of their own."""

    listed: tuple[int, ...]

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of these rows; that of ``base`` where it has not all of them."""
        return (len(self.listed), *base.shape[1:]) if max(self.listed) < base.shape[0] else base.shape

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of these."""
        wanted = np.array(self.listed[start:stop], dtype=np.intp)
        if not wanted.size:
            return base.rows(0, 0)
        first = int(wanted.min())
        return np.ascontiguousarray(base.rows(first, int(wanted.max()) + 1)[wanted - first])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsByHead:
    """The rows of q, of k or of v in a tensor that holds those of each head side by side."""

    head_dim: int
    part: int

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of these rows: a third of all."""
        return (base.shape[0] // 3, *base.shape[1:])

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of these."""
        first, last = start // self.head_dim, -(-stop // self.head_dim)
        heads = base.rows(3 * first * self.head_dim, 3 * last * self.head_dim)
        own = heads.reshape(-1, 3, self.head_dim, *heads.shape[1:])[:, self.part]
        start -= first * self.head_dim
        stop -= first * self.head_dim
        return np.asarray(own.reshape(-1, *heads.shape[1:])[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """A norm's weight that is stored less a constant: 1 + w, computed in f32 as transformers does."""

    by: float

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of ``base``."""
        return base.shape

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return the values as they are multiplied with."""
        values = base.rows(start, stop)
        return np.asarray(values + values.dtype.type(self.by))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """A tensor as a runtime holds it that casts its weights to its own number format when it loads them."""

    to: Format

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of ``base``."""
        return base.shape

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return the rows, rounded."""
        return self.to.round(base.rows(start, stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class OneExpert:
    """The matrix of one expert in a tensor [experts, out, in] of all."""

    expert: int

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of one matrix."""
        return base.shape[1:]

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of the matrix."""
        return np.asarray(base.rows(self.expert, self.expert + 1)[0, start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertColumns:
    """The matrix [out, in] of one expert, every ``step``-th column of its part of [experts, in, columns].

    Of its bias, in [experts, columns], likewise.
    """

    expert: int
    first: int
    step: int

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return the shape of one matrix, or of one bias."""
        return (len(range(self.first, base.shape[-1], self.step)), *base.shape[1:-1])

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` of the matrix."""
        whole = base.rows(self.expert, self.expert + 1)[0]
        return np.ascontiguousarray(whole.T[self.first :: self.step][start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedExperts:
    """The matrices [out, in] of all experts, seen as a checkpoint of [experts, in, out] holds them."""

    def shape(self, base: Tensor) -> tuple[int, ...]:
        """Return [experts, in, out]."""
        experts, out, width = base.shape
        return (experts, width, out)

    def rows(self, base: Tensor, start: int, stop: int) -> FloatArray:
        """Return experts ``start`` to ``stop``."""
        return np.asarray(base.rows(start, stop).swapaxes(1, 2))


_MINIMUM_AT: Mapping[str, int] = {"q4_1": 2, "q5_1": 2}
"""Types whose blocks of 32 start with an f16 scale and an f16 minimum -> the minimum's first byte."""


def has_block_minima(tensor: Tensor) -> bool:
    """Whether the tensor's blocks of 32 have a minimum of their own."""
    return tensor.type in _MINIMUM_AT


def block_minima(tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return the minimum of each block of 32 of a ``q4_1`` or ``q5_1`` tensor: [out, in / 32].

    Raises:
        ModelError: a type whose blocks have no minimum.

    """
    if isinstance(tensor, ViewedTensor) and isinstance(tensor.view, HalfSplit):
        return tensor.view.of_whole_heads(block_minima(tensor.base))
    if not isinstance(tensor, QuantisedTensor) or tensor.type not in _MINIMUM_AT:
        raise ModelError(f"tensor {tensor.name} of type {tensor.type} has no block minima")
    block_bytes = tensor.info.row_bytes // (tensor.shape[-1] // 32)
    blocks = tensor.data.reshape(tensor.shape[0], -1, block_bytes)
    at = _MINIMUM_AT[tensor.type]
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float64)
