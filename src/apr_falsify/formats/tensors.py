"""One weight tensor as it lies in a file, decoded row by row: plain numbers or blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.apr import APR_Q4, APR_Q8, AprTensorInfo
from apr_falsify.formats.gguf import GgufTensorInfo
from apr_falsify.numerics.arithmetic import Format

FloatArray = npt.NDArray[np.floating[Any]]
_Number = TypeVar("_Number", bound=np.generic)

PLAIN_TYPES: Mapping[str, str] = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2"}
"""Number format -> the NumPy type of its bits."""

SAFETENSORS_TYPES: Mapping[str, tuple[str, str]] = {
    kind.upper(): (kind, bits) for kind, bits in PLAIN_TYPES.items()
}
"""Names of number formats in safetensors -> ours, and the NumPy type of their bits."""


class Tensor(Protocol):
    """One weight tensor, decoded row by row."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, [out, in] for a projection."""

    @property
    def type(self) -> str:
        """The number format it is stored in: ``f32``, ``f16``, ``bf16``, ``q4_k`` ..."""

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` decoded exactly (f32, or f64 where the file holds f64)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTensor:
    """A tensor of plain numbers, memory-mapped. bf16 is held as its u16 bit patterns."""

    name: str
    type: str
    data: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.data.shape

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the rows as f32 (exact for f16 and bf16), f64 where the file holds f64."""
        part = np.asarray(self.data[start:stop])
        if self.type == "bf16":
            return (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return part if part.dtype in (np.float32, np.float64) else part.astype(np.float32)


def plain_tensor(name: str, kind: str, shape: tuple[int, ...], content: npt.NDArray[np.uint8]) -> PlainTensor:
    """Return the tensor whose bytes are ``content``: plain numbers in a format of ``PLAIN_TYPES``."""
    return PlainTensor(name=name, type=kind, data=content.view(PLAIN_TYPES[kind]).reshape(shape))


def _as_stored() -> np.errstate:
    """Let scales that are infinite or no numbers be what they are: a comparison says so, no warning does."""
    return np.errstate(over="ignore", invalid="ignore")


_BYTES_A_ROW = 1 << 13
"""The ``gguf`` package dequantises 16 rows in one go; of short ones several are handed to it as one."""


def _dequantised(rows: npt.NDArray[np.uint8], kind: Any) -> FloatArray:
    import gguf

    size = rows.shape[-1]
    flat = rows.reshape(-1, size)
    together = math.gcd(len(flat), 1 << max(1, _BYTES_A_ROW // size).bit_length() - 1)
    with _as_stored():
        values: FloatArray = gguf.quants.dequantize(flat.reshape(-1, size * together), kind)
    return values.reshape(*rows.shape[:-1], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedTensor:
    """A tensor of ggml blocks; its rows are dequantised by the ``gguf`` package."""

    info: GgufTensorInfo | AprTensorInfo
    data: npt.NDArray[np.uint8]

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, rows first."""
        return self.info.shape

    @property
    def type(self) -> str:
        """Its ggml type."""
        return self.info.type

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the rows dequantised to f32, as the format's definition says."""
        import gguf

        kind = gguf.GGMLQuantizationType[self.info.type.upper()]
        one_row = len(self.shape) < 2  # its values lie in the blocks of a single row
        blocks = self.data if one_row else self.data[start:stop]
        if not blocks.size:  # the package cannot reshape no blocks
            return np.empty((0, *self.shape[1:]), dtype=np.float32)
        try:
            values = _dequantised(blocks, kind)
        except NotImplementedError as error:
            raise ModelError(
                f"tensor {self.name} has type {self.type}, which cannot be dequantised"
            ) from error
        if one_row:
            return values[: self.shape[0]][start:stop]
        return values[..., : self.shape[-1]]  # .apr fills a row's last block up


@dataclass(frozen=True, slots=True, kw_only=True)
class AprBlockTensor:
    """A tensor in one of .apr's own formats; both run over its values in order, whatever its rows.

    ``apr_q8`` is one f32 scale for all and a signed byte a value; ``apr_q4`` blocks of 32: an f16 scale and a
    nibble a value, less 8. A scale that is no normal f16 counts as 0, as ``dequantize_q4`` of aprender-core
    (the file of its trait ``AprV2DequantExt``) has it.
    """

    info: AprTensorInfo
    data: npt.NDArray[np.uint8]

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, rows first."""
        return self.info.shape

    @property
    def type(self) -> str:
        """``apr_q4`` or ``apr_q8``."""
        return self.info.type

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the rows dequantised to f32, each value the product that ``apr`` computes in f32."""
        width = math.prod(self.shape[1:])
        stop = min(stop, self.shape[0])
        start = min(start, stop)
        decode = {APR_Q4.name: self._nibbles, APR_Q8.name: self._bytes}[self.type]
        return decode(start * width, stop * width).reshape(stop - start, *self.shape[1:])

    def _bytes(self, first: int, last: int) -> npt.NDArray[np.float32]:
        head = APR_Q8.head_bytes
        scale = self.data[:head].view("<f4")[0]
        with _as_stored():
            return np.asarray(self.data[head + first : head + last].view(np.int8).astype(np.float32) * scale)

    def _nibbles(self, first: int, last: int) -> npt.NDArray[np.float32]:
        start, stop = first // APR_Q4.block, -(-last // APR_Q4.block)
        blocks = self.data.reshape(-1, APR_Q4.block_bytes)[start:stop]
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        scales[~(np.isfinite(scales) & (np.abs(scales) >= _SMALLEST_NORMAL_F16))] = 0
        pairs = np.stack((blocks[:, 2:] & 15, blocks[:, 2:] >> 4), axis=-1)
        values = (pairs.reshape(len(blocks), APR_Q4.block).astype(np.float32) - 8) * scales
        return values.reshape(-1)[first - start * APR_Q4.block : last - start * APR_Q4.block]


_SMALLEST_NORMAL_F16 = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableTensor:
    """A tensor in a number format that is not read here; it is refused only when it is asked for."""

    name: str
    type: str
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> FloatArray:
        """Refuse.

        Raises:
            ModelError: always.

        """
        raise ModelError(
            f"tensor {self.name} has type {self.type}, which is not read here",
            expected=", ".join(SAFETENSORS_TYPES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewedTensor:
    """A tensor seen as a forward pass uses it; its values are worked out as rows are asked for.

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
    rows i and i + D/2. Where only the first ``width`` channels of a head are rotated, the others stay.
    """

    head_dim: int
    width: int | None = None

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

    def as_held(self, rows: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """Return rows in half-split order as the file holds them: what undoes :meth:`of_whole_heads`."""
        return self._regrouped(rows, interleaved=False)

    def _regrouped(self, rows: npt.NDArray[_Number], interleaved: bool) -> npt.NDArray[_Number]:
        width = self.head_dim if self.width is None else self.width
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        groups = (width // 2, 2) if interleaved else (2, width // 2)
        pairs = heads[:, :width].reshape(-1, *groups, *rows.shape[1:])
        turned = np.swapaxes(pairs, 1, 2).reshape(-1, width, *rows.shape[1:])
        return np.concatenate((turned, heads[:, width:]), axis=1).reshape(rows.shape)


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


def transposed(tensor: Tensor) -> Tensor:
    """Return a tensor that is stored [in, out] as [out, in], without a copy.

    Raises:
        ModelError: a tensor of blocks, which cannot be read across them.

    """
    if isinstance(tensor, UnreadableTensor):
        return UnreadableTensor(name=tensor.name, type=tensor.type, shape=tensor.shape[::-1])
    if not isinstance(tensor, PlainTensor):
        raise ModelError(f"tensor {tensor.name} of type {tensor.type} cannot be read transposed")
    return PlainTensor(name=tensor.name, type=tensor.type, data=tensor.data.T)


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
