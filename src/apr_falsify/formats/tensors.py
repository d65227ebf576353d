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
    """A tensor of plain numbers, memory-mapped. bf16 is read as its u16 bit patterns."""

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


STORED_BITS: Mapping[str, str] = {
    **{f"{sign}{8 * size}": f"<{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)},
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), "<u1"),
}
"""Names of further types in safetensors, of which weights are quantised -> the NumPy type of their bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableTensor:
    """A tensor in a number format that is no weight by itself; it is refused only when it is requested.

    Attributes:
        name: its name in the file.
        type: its number format as the file calls it.
        shape: its shape.
        bits: its values, memory-mapped, where the format is one of :data:`STORED_BITS`: a quantised weight
            is made of several such tensors.

    """

    name: str
    type: str
    shape: tuple[int, ...]
    bits: npt.NDArray[Any] | None = None

    def rows(self, start: int, stop: int) -> FloatArray:
        """Refuse.

        Raises:
            ModelError: always.

        """
        raise ModelError(
            f"tensor {self.name} has type {self.type}, which is not read here",
            expected=", ".join(SAFETENSORS_TYPES),
        )


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
