"""torchao: integers of 8 bits and fewer, as its tensors are laid out in safetensors.

What kind of tensor a layer's ``weight`` [out, in] is, the file's own metadata say in JSON under its name:

    Int8Tensor, IntxUnpackedToInt8Tensor
        _weight_qdata       int8 [out, in]
        _weight_scale       [out / rows, in / columns of a block]
        _weight_zero_point  in the same shape, or none
    Int4Tensor
        _weight_qdata       int8 or uint8 [out, in / 2]   signed codes, the first of two in the lower half
        _weight_scale       [groups, out]
        _weight_zero_point  [groups, out]   what is added to each product

Other tensors of torchao are packed for one device's kernels and are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from apr_falsify.errors import ModelError
from apr_falsify.formats.quantised.checkpoint import Quantised, columns, f32
from apr_falsify.formats.quantised.grid import F32, Grid, GridTensor, even_groups, of_blocks
from apr_falsify.formats.quantised.mxfp4 import LOW_FIRST
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.safetensors import file_metadata
from apr_falsify.formats.tensors import PlainTensor, Tensor
from apr_falsify.reading import items, mapping, parse_json, text, whole

_DATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
_PRE_SCALE = "_weight_act_pre_scale"
_NAMES = "_tensor_data_names"
_OF_ACTIVATIONS = ("activation_quantization", "act_quant_kwargs")
_PARTS = (_DATA, _SCALE, _ZERO)
_INTEGERS = ("I8", "U8", "I32", "I64")
_INT4, _INT8, _INTX = "Int4Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor"
_KINDS = (_INT8, _INTX, _INT4)


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a torchao checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit, or another kind of tensor.

    """
    modules = list(dict.fromkeys(module for part in (_DATA, _SCALE) for module in model.modules(part)))
    said = {path: file_metadata(path) for path in dict.fromkeys(model.files.values())} if modules else {}
    found = {f"{module}.weight": _weight(model, module, said) for module in modules}
    return found, [f"{module}.{part}" for module in modules for part in _PARTS]


def _weight(model: Quantised, module: str, said: Mapping[Any, Mapping[str, str]]) -> GridTensor:
    data = f"{module}.{_DATA}"
    model.needed(data, f"{module}.{_SCALE}")
    path = model.files.get(data, model.where)
    kind, attributes = _described(model, module, said.get(path, {}))
    if kind not in _KINDS:
        raise model.refusal(
            data, f"belongs to torchao's {kind}, which is not read here", expected=", ".join(_KINDS)
        )
    if f"{module}.{_PRE_SCALE}" in model.tensors:
        raise model.refusal(f"{module}.{_PRE_SCALE}", "scales the inputs", expected="weights alone")
    for key in _OF_ACTIVATIONS:
        if attributes.get(key) is not None:
            raise model.refusal(
                data,
                f"says in its file's metadata that inputs are quantised too: {key} is {attributes[key]!r}",
                expected="weights alone: quantise the model without it",
            )
    if kind == _INT4:
        return _int4(model, module, attributes)
    return _bytes(model, module, attributes, _bits(attributes) if kind == _INTX else 8)


def _described(model: Quantised, module: str, said: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    """Return the kind of a weight's tensor and its attributes, as its file's metadata have them.

    Raises:
        ModelError: they are not there, or name a part that is not.

    """
    name, data = f"{module}.weight", f"{module}.{_DATA}"
    if name not in said:
        raise model.refusal(
            data, "has no entry in its file's metadata", expected=f"what torchao writes of {name}"
        )
    try:
        entry = mapping(parse_json(said[name]), f"what the metadata say of {name}")
        kind = text(entry.get("_type"), "_type")
        parts = [text(part, "a name") for part in items(entry.get(_NAMES), _NAMES)]
        attributes = mapping(entry.get("_data"), "_data")
    except ValueError as error:
        raise ModelError(
            f"its metadata on {name}: {error}", where=model.files.get(data, model.where)
        ) from error
    for part in parts:
        model.needed(f"{module}._weight_{part}", data)
    return kind, attributes


def _bits(attributes: Mapping[str, Any]) -> int:
    said = attributes.get("target_dtype")
    name = text(said.get("_data") if isinstance(said, Mapping) else said, "target_dtype")
    if not name.startswith("int") or not name[3:].isdecimal() or not 1 < int(name[3:]) <= 8:
        raise ValueError(f"target_dtype is {name!r}, not int2 to int8")
    return int(name[3:])


def _block(model: Quantised, name: str, attributes: Mapping[str, Any], shape: tuple[int, ...]) -> list[int]:
    """Return how many rows and columns share a scale, which must divide ``shape``."""
    block = [whole(size, "block_size") for size in items(attributes.get("block_size"), "block_size")]
    if len(block) != 2 or min(block) <= 0 or shape[0] % block[0] or shape[1] % block[1]:
        raise model.refusal(
            name, f"has the shape {list(shape)}", expected=f"a multiple of its block_size, which is {block}"
        )
    return block


def _bytes(model: Quantised, module: str, attributes: Mapping[str, Any], bits: int) -> GridTensor:
    data, scale_name, zero_name = (f"{module}.{part}" for part in _PARTS)
    codes = model.matrix(data, ("I8",), scale_name)
    rows, width = _block(model, data, attributes, codes.shape)
    expected = (codes.shape[0] // rows, codes.shape[1] // width)
    scales = f32(model.numbers(scale_name, data))
    model.check_shape(scale_name, scales.shape, expected, f"one for each block of {data}")
    zeros = _zeros(model, zero_name, data, expected)

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=codes[start:stop].astype(np.float32),
            scales=of_blocks(scales, rows, start, stop),
            zeros=None if zeros is None else of_blocks(zeros, rows, start, stop),
            groups=even_groups(codes.shape[1], width),
        )

    return GridTensor(
        name=f"{module}.weight", type=f"int{bits}", shape=codes.shape, read=read, block_rows=rows
    )


def _zeros(model: Quantised, name: str, data: str, expected: tuple[int, ...]) -> F32 | None:
    """Return the zero points, ``None`` where there are none or all are 0."""
    if name not in model.tensors:
        return None
    if isinstance(model.tensors[name], PlainTensor):
        zeros = f32(model.numbers(name, data))
    else:
        zeros = model.bits_of(name, _INTEGERS, data).astype(np.float32)
    model.check_shape(name, zeros.shape, expected, f"one for each block of {data}")
    return zeros if zeros.any() else None


def _int4(model: Quantised, module: str, attributes: Mapping[str, Any]) -> GridTensor:
    data, scale_name, zero_name = (f"{module}.{part}" for part in _PARTS)
    octets = model.matrix(data, ("I8", "U8"), data, "[out, in / 2]")
    shape = (octets.shape[0], 2 * octets.shape[1])
    rows, size = _block(model, data, attributes, shape)
    if rows != 1:
        raise model.refusal(data, f"has a block_size of {rows} rows", expected="one row")
    scales, added = model.numbers(scale_name, data), model.numbers(zero_name, data)
    for part in (scales, added):
        model.check_shape(
            part.name, part.shape, (shape[1] // size, shape[0]), f"one for each group of {data}"
        )

    def read(start: int, stop: int) -> Grid:
        codes = unpacked(octets[start:stop], 4).astype(np.float32)
        return Grid(
            codes=np.where(codes < 8, codes, codes - 16).astype(np.float32),
            scales=columns(scales, start, stop),
            shifts=columns(added, start, stop),
            groups=even_groups(shape[1], size),
        )

    return GridTensor(name=f"{module}.weight", type="int4", shape=shape, read=read, packing=LOW_FIRST)
