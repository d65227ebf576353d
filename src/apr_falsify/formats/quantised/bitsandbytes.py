"""bitsandbytes: NF4 and FP4 in blocks of values, and LLM.int8 with a scale for each output channel.

Four bits, for a weight of n values in row order: ``weight`` uint8 [n / 2, 1], the first of two codes in the
upper half of a byte; ``weight.quant_map`` f32 [16], what a code stands for; ``weight.absmax``, the scale of
each block; ``weight.quant_state.bitsandbytes__nf4``, JSON in bytes with ``shape`` and ``blocksize``. With
double quantisation ``absmax`` is of bytes, which stand for
``nested_quant_map[byte] * nested_absmax[block] + nested_offset``.

LLM.int8: ``weight`` int8 [out, in] and ``SCB`` f32 [out], the largest magnitude of each row, which is 127.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.quantised.checkpoint import Quantised, f32
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.tensors import Tensor, UnreadableTensor
from apr_falsify.reading import items, mapping, number, parse_json, whole

F32 = npt.NDArray[np.float32]

_STATE = "quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *(f"{_STATE}{kind}" for kind in _KINDS))
_HIGH_FIRST = PackedOrder(axis="in", order=(1, 0))


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a bitsandbytes checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit.

    """
    found: dict[str, Tensor] = {}
    used: list[str] = []
    for module in model.modules("weight"):
        name = f"{module}.weight"
        tensor = model.tensors[name]
        if not isinstance(tensor, UnreadableTensor):
            continue
        if tensor.type == "I8":
            found[name] = _int8(model, module, name)
        else:
            found[name] = _four_bits(model, name)
        used += [f"{module}.SCB", f"{module}.weight_format", *(f"{name}.{part}" for part in _PARTS)]
    return found, used


def _int8(model: Quantised, module: str, name: str) -> GridTensor:
    codes = model.matrix(name, ("I8",), name)
    largest = f32(model.numbers(f"{module}.SCB", name)).reshape(-1, 1)
    model.check_shape(f"{module}.SCB", largest.shape[:1], codes.shape[:1], f"one for each row of {name}")
    scales = np.asarray(largest / np.float32(127), dtype=np.float32)
    groups = even_groups(codes.shape[1], codes.shape[1])

    def read(start: int, stop: int) -> Grid:
        return Grid(codes=codes[start:stop].astype(np.float32), scales=scales[start:stop], groups=groups)

    return GridTensor(name=name, type="int8", shape=(codes.shape[0], codes.shape[1]), read=read)


def _four_bits(model: Quantised, name: str) -> GridTensor:
    kind, said = _state(model, name)
    octets = model.bits_of(name, ("U8",), name)
    shape = tuple(whole(size, "shape") for size in items(said.get("shape"), "shape"))
    size = whole(said.get("blocksize"), "blocksize")
    _check_positive(name, size)
    if len(shape) != 2 or min(shape) <= 0 or octets.size * 2 != shape[0] * shape[1] + shape[0] * shape[1] % 2:
        raise model.refusal(
            name, f"has {octets.size} bytes", expected=f"half of the {list(shape)} values of its quant_state"
        )
    table = f32(model.numbers(f"{name}.quant_map", name))
    model.check_shape(f"{name}.quant_map", table.shape, (16,), "a value for each code")
    scales = _absmax(model, name, said)
    model.check_shape(
        f"{name}.absmax", scales.shape, (-(-shape[0] * shape[1] // size),), "one for each block"
    )
    flat, width = octets.reshape(-1), shape[1]

    def read(start: int, stop: int) -> Grid:
        first, last = start * width, stop * width
        both = unpacked(flat[first // 2 : -(-last // 2)], 4).reshape(-1, 2)[:, ::-1].reshape(-1)
        codes = both[first % 2 :][: last - first].reshape(-1, width)
        if width % size == 0:
            own = scales.reshape(-1, width // size)[start:stop]
            return Grid(codes=table[codes], scales=own, groups=even_groups(width, size))
        each = scales[np.arange(first, last) // size].reshape(-1, width)  # a block runs over the end of a row
        return Grid(codes=table[codes], scales=each, groups=np.arange(width))

    return GridTensor(name=name, type=kind, shape=(shape[0], width), read=read, packing=_HIGH_FIRST)


def _check_positive(name: str, size: int) -> None:
    if size <= 0:
        raise ValueError(f"a block of {name} has {size} values")


def _state(model: Quantised, name: str) -> tuple[str, Mapping[str, Any]]:
    """Return the kind of a four-bit weight, and what its state says in JSON."""
    kind = next((one for one in _KINDS if f"{name}.{_STATE}{one}" in model.tensors), _KINDS[0])
    state = f"{name}.{_STATE}{kind}"
    octets = model.bits_of(state, ("U8",), name)
    try:
        return kind, mapping(parse_json(octets.tobytes().decode("utf-8")), "the state")
    except (ValueError, json.JSONDecodeError) as error:
        raise ModelError(
            f"tensor {state} holds no JSON object: {error}", where=model.files.get(state, model.where)
        ) from error


def _absmax(model: Quantised, name: str, said: Mapping[str, Any]) -> F32:
    """Return the scale of each block, [blocks]."""
    held = model.tensors.get(f"{name}.absmax")
    if not isinstance(held, UnreadableTensor):
        return f32(model.numbers(f"{name}.absmax", name))
    codes = model.bits_of(f"{name}.absmax", ("U8",), name)
    table = f32(model.numbers(f"{name}.nested_quant_map", name))
    outer = f32(model.numbers(f"{name}.nested_absmax", name))
    size = whole(said.get("nested_blocksize"), "nested_blocksize")
    _check_positive(name, size)
    model.check_shape(f"{name}.nested_quant_map", table.shape, (256,), "a value for each byte")
    model.check_shape(f"{name}.nested_absmax", outer.shape, (-(-codes.size // size),), "one for each block")
    offset = np.float32(number(said.get("nested_offset"), "nested_offset"))
    spread = outer[np.arange(codes.size) // size]
    return np.asarray(table[codes] * spread + offset, dtype=np.float32)
