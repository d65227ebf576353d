"""GPTQ: integers of 2, 3, 4 or 8 bits, a scale and a zero point for each group of input channels.

As AutoGPTQ and GPTQModel write them, for each linear layer:

    qweight  int32 [in * bits / 32, out]      codes, packed along the input channels
    qzeros   int32 [groups, out * bits / 32]  zero points, packed along the output channels
    scales   f16   [groups, out]
    g_idx    int32 [in]                       the group of each input channel

``checkpoint_format: gptq`` (the first one, and the default) stores each zero point less one; readers add 1 to
every field of a word at once, so that a borrow of the writer is undone. ``gptq_v2`` stores them as they are.
With ``desc_act`` channels were quantised in another order, and ``g_idx`` is what still says their groups.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.quantised.checkpoint import Quantised, columns
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups
from apr_falsify.formats.quantised.packing import CODES_A_BLOCK, unpacked, unpacked_columns
from apr_falsify.formats.tensors import PlainTensor, Tensor

_WIDTHS = (2, 3, 4, 8)
_FORMATS = (None, "gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a GPTQ checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit, or a setting that is not read here.

    """
    model.unknown("bits", _WIDTHS)
    model.unknown("checkpoint_format", _FORMATS)
    modules = model.modules("qweight")
    found = {f"{module}.weight": _weight(model, module) for module in modules}
    return found, [f"{module}.{part}" for module in modules for part in PARTS]


def _weight(model: Quantised, module: str) -> GridTensor:
    bits = int(model.config["bits"])
    name = f"{module}.qweight"
    words = model.matrix(name, ("I32", "U32"), name, f"[in * {bits} / 32, out]")
    zero_words = model.matrix(f"{module}.qzeros", ("I32", "U32"), name, f"[groups, out * {bits} / 32]")
    scales = model.numbers(f"{module}.scales", name)
    width, out = words.shape[0] * 32 // bits, words.shape[-1]
    groups = _groups(model, module, width)
    count = int(groups.max()) + 1
    _check_shapes(model, module, words, zero_words, scales, bits, count)
    if model.config.get("checkpoint_format") != "gptq_v2":
        zero_words = _one_more(zero_words, bits)

    def read(start: int, stop: int) -> Grid:
        codes = unpacked(words[:, start:stop].T, bits)
        return Grid(
            codes=codes.astype(np.float32),
            scales=columns(scales, start, stop),
            zeros=unpacked_columns(zero_words, bits, start, stop).T.astype(np.float32),
            groups=groups,
        )

    packing = PackedOrder(axis="in", order=tuple(range(8))) if bits == 4 else None
    return GridTensor(
        name=f"{module}.weight",
        type=f"int{bits}",
        shape=(out, width),
        read=read,
        packing=packing,
        zeros_less_one=True,
    )


def _groups(model: Quantised, module: str, width: int) -> npt.NDArray[np.intp]:
    """Return the group of each input channel: what ``g_idx`` says, else groups of equal size in order."""
    name = f"{module}.qweight"
    size = model.group_size(name, width)
    if f"{module}.g_idx" not in model.tensors and not model.config.get("desc_act"):
        return even_groups(width, size)
    index = model.bits_of(f"{module}.g_idx", ("I32", "I64"), name)
    model.check_shape(f"{module}.g_idx", index.shape, (width,), f"one group for each channel of {name}")
    groups = np.asarray(index, dtype=np.intp)
    if groups.min() < 0 or groups.max() >= width // size:
        raise model.refusal(
            f"{module}.g_idx",
            f"names the group {int(groups.max() if groups.min() >= 0 else groups.min())}",
            expected=f"groups from 0 to {width // size - 1}",
        )
    return groups


def _check_shapes(
    model: Quantised,
    module: str,
    words: npt.NDArray[Any],
    zero_words: npt.NDArray[Any],
    scales: PlainTensor,
    bits: int,
    count: int,
) -> None:
    out, name = words.shape[-1], f"{module}.qweight"
    if words.shape[0] * 32 % bits or (out * bits) % CODES_A_BLOCK:
        raise model.refusal(
            name, f"has the shape {list(words.shape)}", expected=f"[in * {bits} / 32, out], whole words"
        )
    model.check_shape(scales.name, scales.shape, (count, out), f"a scale for each group of {name}")
    zeros = (count, out * bits // 32)
    model.check_shape(
        f"{module}.qzeros", zero_words.shape, zeros, f"the zero points of {name} by their scales"
    )


def _one_more(words: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Return packed zero points, each field one more."""
    if 32 % bits:  # fields that reach over words are not added to at once
        codes = ((unpacked(words, bits) + 1) & ((1 << bits) - 1)).astype(np.uint8)
        stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
        octets = np.packbits(stream.reshape(len(words), -1), axis=-1, bitorder="little")
        return np.asarray(octets.view("<u4"))
    ones = sum(1 << at for at in range(0, 32, bits))
    return np.asarray(words).view("<u4") + np.uint32(ones)
