"""AWQ: 4-bit integers, a scale and a zero point for each group of input channels, packed along the outputs.

As AutoAWQ writes its version ``gemm``, for each linear layer:

    qweight  int32 [in, out / 8]      codes, eight neighbouring output channels in one word
    qzeros   int32 [groups, out / 8]  zero points, packed in the same way
    scales   f16   [groups, out]

Output channel 0 of eight lies in the lowest four bits, then come channels 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.quantised.checkpoint import Quantised, columns
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.tensors import Tensor

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output channel of eight -> its place in the word, the lowest bits first."""

_PARTS = ("qweight", "qzeros", "scales")
_EIGHT = len(PLACES)


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of an AWQ checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit, or another packing than that of ``gemm``.

    """
    model.unknown("bits", (4,))
    model.unknown("version", (None, "gemm", "GEMM"))
    model.unknown("zero_point", (None, True))
    modules = model.modules("qweight")
    found = {f"{module}.weight": _weight(model, module) for module in modules}
    return found, [f"{module}.{part}" for module in modules for part in _PARTS]


def _weight(model: Quantised, module: str) -> GridTensor:
    name = f"{module}.qweight"
    words = model.matrix(name, ("I32", "U32"), name, "[in, out / 8]")
    zero_words = model.matrix(f"{module}.qzeros", ("I32", "U32"), name, "[groups, out / 8]")
    scales = model.numbers(f"{module}.scales", name)
    width, out = words.shape[0], words.shape[-1] * _EIGHT
    size = model.group_size(name, width)
    model.check_shape(scales.name, scales.shape, (width // size, out), f"a scale for each group of {name}")
    packed = (width // size, out // _EIGHT)
    model.check_shape(f"{module}.qzeros", zero_words.shape, packed, f"the zero points of {name}")

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=_columns(words, start, stop).T.astype(np.float32),
            scales=columns(scales, start, stop),
            zeros=_columns(zero_words, start, stop).T.astype(np.float32),
            groups=even_groups(width, size),
        )

    return GridTensor(
        name=f"{module}.weight",
        type="int4",
        shape=(out, width),
        read=read,
        packing=PackedOrder(axis="out", order=PLACES),
    )


def _columns(words: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Return output channels ``start`` to ``stop`` of packed words, [rows, channels]."""
    first, last = start // _EIGHT, -(-stop // _EIGHT)
    codes = unpacked(words[:, first:last], 4).reshape(len(words), -1, _EIGHT)[..., PLACES]
    return codes.reshape(len(words), -1)[:, start - first * _EIGHT : stop - first * _EIGHT]
