"""What a scheme is given: config.json's ``quantization_config`` and the tensors of the files, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.tensors import PlainTensor, Tensor, UnreadableTensor
from apr_falsify.reading import whole

ShapeOf = Callable[[str], tuple[int, ...] | None]


def no_shape(name: str) -> tuple[int, ...] | None:
    """Return that nothing is known of the weight ``name``."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A quantised checkpoint.

    Attributes:
        config: what config.json says under ``quantization_config``.
        tensors: name -> tensor, as the files hold them.
        files: name -> the file that holds the tensor.
        where: the directory.
        shape_of: gives the shape that the model's sizes say a weight has, ``None`` where they say none.

    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Path]
    where: Path
    shape_of: ShapeOf = no_shape

    def modules(self, part: str) -> list[str]:
        """Return the modules of which the files hold ``part``, e.g. ``qweight``."""
        end = f".{part}"
        return [name.removesuffix(end) for name in self.tensors if name.endswith(end)]

    def bits_of(self, name: str, types: Collection[str], needed_by: str) -> npt.NDArray[Any]:
        """Return the values of a tensor that is no weight by itself, memory-mapped.

        Raises:
            ModelError: it is not there, or of no type in ``types``.

        """
        tensor = self.needed(name, needed_by)
        if not isinstance(tensor, UnreadableTensor) or tensor.bits is None or tensor.type not in types:
            raise self.refusal(name, f"is of type {tensor.type}", expected=" or ".join(types))
        return tensor.bits

    def matrix(
        self, name: str, types: Collection[str], needed_by: str, axes: str = "[out, in]"
    ) -> npt.NDArray[Any]:
        """Return the values of a tensor like :meth:`bits_of`, which has two axes and is not empty.

        Raises:
            ModelError: it is not there, of another type, or of another shape than ``axes`` says.

        """
        bits = self.bits_of(name, types, needed_by)
        if bits.ndim != 2 or not bits.size:
            raise self.refusal(name, f"has the shape {list(bits.shape)}", expected=axes)
        return bits

    def numbers(self, name: str, needed_by: str) -> PlainTensor:
        """Return a tensor of plain numbers, as scales are.

        Raises:
            ModelError: it is not there, or does not hold plain numbers.

        """
        tensor = self.needed(name, needed_by)
        if not isinstance(tensor, PlainTensor):
            raise self.refusal(name, f"is of type {tensor.type}", expected="f16, bf16 or f32")
        return tensor

    def needed(self, name: str, needed_by: str) -> Tensor:
        """Return a tensor without which another one cannot be read.

        Raises:
            ModelError: it is not there.

        """
        if name not in self.tensors:
            raise ModelError(
                f"tensor {name} is missing, without which {needed_by} cannot be read",
                where=self.files.get(needed_by, self.where),
                expected=f"it beside {needed_by}, as {self.config.get('quant_method')} checkpoints have it",
                remedy="look at how the checkpoint was written; nothing is put in its place",
            )
        return self.tensors[name]

    def check_shape(self, name: str, found: Sequence[int], expected: Sequence[int], why: str) -> None:
        """Refuse a tensor whose shape is not ``expected``.

        Raises:
            ModelError: it has another shape.

        """
        if tuple(found) != tuple(expected):
            raise self.refusal(name, f"has the shape {list(found)}", expected=f"{list(expected)}, {why}")

    def check_divides(self, name: str, size: int, width: int, what: str = "the group size") -> None:
        """Refuse groups that do not divide a matrix.

        Raises:
            ModelError: they do not.

        """
        if size <= 0 or width % size:
            raise self.refusal(
                name, f"has {width} input channels", expected=f"a multiple of {what}, which is {size}"
            )

    def group_size(self, name: str, width: int) -> int:
        """Return the size of the groups of ``width`` input channels, all of them where it is -1.

        Raises:
            ModelError: it is no size, or does not divide them.

        """
        size = self.config.get("group_size", -1)
        try:
            size = width if size == -1 else whole(size, "quantization_config.group_size")
        except ValueError as error:
            raise ModelError(str(error), where=self.where / "config.json") from error
        self.check_divides(name, size, width)
        return size

    def refusal(self, name: str, what: str, *, expected: str = "") -> ModelError:
        """Return the error that says what is wrong with the tensor ``name``."""
        return ModelError(f"tensor {name} {what}", where=self.files.get(name, self.where), expected=expected)

    def unknown(
        self, key: str, known: Collection[object], *, config: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse a setting of ``quantization_config`` that is not read here.

        Raises:
            ModelError: the setting ``key`` is none of ``known``.

        """
        value = (self.config if config is None else config).get(key)
        if value not in known:
            raise ModelError(
                f"quantization_config says {key}: {value!r}",
                where=self.where / "config.json",
                expected=", ".join(str(one) for one in known),
            )


def f32(tensor: PlainTensor) -> npt.NDArray[np.float32]:
    """Return a tensor of scales whole, in f32."""
    if not tensor.shape:
        return np.asarray(
            PlainTensor(name=tensor.name, type=tensor.type, data=tensor.data.reshape(1)).rows(0, 1)[0]
        ).astype(np.float32)
    return tensor.rows(0, tensor.shape[0]).astype(np.float32, copy=False)


def columns(tensor: PlainTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Return columns ``start`` to ``stop`` of a tensor of scales as rows, in f32."""
    part = PlainTensor(name=tensor.name, type=tensor.type, data=tensor.data[:, start:stop])
    return np.asarray(part.rows(0, part.shape[0]).T, dtype=np.float32)


Reader = Callable[[Quantised], tuple[Mapping[str, Tensor], Collection[str]]]
"""Returns the weights that a scheme's tensors stand for, by name, and the names of what they are made of."""
