"""quanto: integers of 8, 4 or 2 bits or FP8, as ``optimum.quanto`` lays the state of a linear layer out.

Eight bits, for ``weight`` [out, in]:

    weight._data        int8 or F8 [out, in]
    weight._scale       [out, 1]

Fewer bits, where n codes of a byte are n rows of groups, each a part of the whole away from the next:

    weight._data._data  uint8 [rows / n, in of a group]   byte row r holds rows r, r + rows / n ..., r lowest
    weight._scale       [rows, 1]
    weight._shift       [rows, 1]   zero points where they are integers; else what is taken off each product

The groups of an output channel are neighbours; how many it has, the model's sizes alone say. ``input_scale``
and ``output_scale`` are of activations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.formats.quantised.checkpoint import Quantised, f32
from apr_falsify.formats.quantised.fp8 import fp8_weight, is_fp8
from apr_falsify.formats.quantised.grid import F32, Grid, GridTensor, PackedOrder, even_groups, flat_vector
from apr_falsify.formats.tensors import PlainTensor, Tensor

_DATA, _PACKED, _SCALE, _SHIFT = "_data", "_data._data", "_scale", "_shift"
_PARTS = (_DATA, _PACKED, _SCALE, _SHIFT)
_OF_ACTIVATIONS = ("input_scale", "output_scale")
_WIDTHS = (4, 2)


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a quanto checkpoint, and what they are made of.

    Packed weights of which the model's sizes say nothing are no weights of the text model, and are left.

    Raises:
        ModelError: a part is missing or does not fit.

    """
    held = dict.fromkeys(name for part in (_PACKED, _DATA, _SCALE) for name in model.modules(part))
    names = [name for name in held if not name.endswith(f".{_DATA}")]
    found: dict[str, Tensor] = {}
    for name in names:
        packed = f"{name}.{_PACKED}" in model.tensors
        shape = model.shape_of(name)
        if not packed:
            found[name] = _of_bytes(model, name)
        elif shape is not None:
            found[name] = _of_few_bits(model, name, shape)
    used = [f"{name}.{part}" for name in found for part in _PARTS]
    return found, used + [f"{n.removesuffix('.weight')}.{part}" for n in found for part in _OF_ACTIVATIONS]


def _of_bytes(model: Quantised, name: str) -> GridTensor:
    data, scale_name = f"{name}.{_DATA}", f"{name}.{_SCALE}"
    if data in model.tensors and is_fp8(model, data):
        return replace(fp8_weight(model, data, scale_name), name=name)
    codes = model.matrix(data, ("I8",), scale_name)
    scales = f32(model.numbers(scale_name, data))
    if scales.shape not in ((), (1,), (1, 1), (len(codes), 1)):
        expected = f"[{len(codes)}, 1], one for each row of {data}, or one number"
        raise model.refusal(scale_name, f"has the shape {list(scales.shape)}", expected=expected)
    grid, width = flat_vector(scales, len(codes)), codes.shape[1]

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=codes[start:stop].astype(np.float32),
            scales=grid[start:stop],
            groups=even_groups(width, width),
        )

    return GridTensor(name=name, type="int8", shape=codes.shape, read=read)


def _of_few_bits(model: Quantised, name: str, shape: tuple[int, ...]) -> GridTensor:
    data, scale_name = f"{name}.{_PACKED}", f"{name}.{_SCALE}"
    octets = model.matrix(data, ("U8",), data, "[rows / codes of a byte, in of a group]")
    scales = f32(model.numbers(scale_name, data))
    height, size = octets.shape
    if len(shape) != 2:
        raise model.refusal(data, f"stands for a weight of the shape {list(shape)}", expected="[out, in]")
    out, width = shape
    model.check_divides(data, size, width, "the size of its groups")
    rows = out * width // size
    model.check_shape(scale_name, scales.shape, (rows, 1), f"one for each group of {data}")
    bits = next((width for width in _WIDTHS if -(-rows // (8 // width)) == height), None)
    if bits is None:
        expected = f"{-(-rows // 2)} or {-(-rows // 4)} rows, for {rows} groups of 4 or 2 bits"
        raise model.refusal(data, f"has the shape {list(octets.shape)}", expected=expected)
    zeros, shifts = _shift(model, name, rows)
    a_row = width // size

    def read(start: int, stop: int) -> Grid:
        at = np.arange(start * a_row, stop * a_row)
        places = (bits * (at // height)).astype(np.uint8)
        codes = (octets[at % height] >> places[:, None]) & ((1 << bits) - 1)
        return Grid(
            codes=codes.reshape(stop - start, width).astype(np.float32),
            scales=_of_rows(scales, start, stop, a_row),
            zeros=None if zeros is None else _of_rows(zeros, start, stop, a_row),
            shifts=None if shifts is None else _of_rows(shifts, start, stop, a_row),
            groups=even_groups(width, size),
        )

    packing = PackedOrder(axis="parts", order=tuple(range(8 // bits)))
    return GridTensor(name=name, type=f"int{bits}", shape=(out, width), read=read, packing=packing)


def _of_rows(each: F32, start: int, stop: int, a_row: int) -> F32:
    """Return of what each group has, [rows, 1], that of output channels ``start`` to ``stop``."""
    return each[start * a_row : stop * a_row].reshape(stop - start, a_row)


def _shift(model: Quantised, name: str, rows: int) -> tuple[F32 | None, F32 | None]:
    """Return the zero points of a weight, or what is added to its products; the other is ``None``."""
    shift_name, data = f"{name}.{_SHIFT}", f"{name}.{_PACKED}"
    if isinstance(model.tensors.get(shift_name), PlainTensor):
        shifts = f32(model.numbers(shift_name, data))
        model.check_shape(shift_name, shifts.shape, (rows, 1), f"one for each group of {data}")
        return None, -shifts
    zeros = model.matrix(shift_name, ("I8", "U8", "I32"), data, "[rows, 1]")
    model.check_shape(shift_name, zeros.shape, (rows, 1), f"one for each group of {data}")
    return zeros.astype(np.float32), None
