"""compressed-tensors: integers and floats of 4 and 8 bits, as llm-compressor writes them.

For each linear layer, by the ``format`` of its group:

    pack-quantized        weight_packed int32 [out, in * bits / 32] (code + 2^(bits-1)), weight_shape [2],
                          weight_scale [out, groups], weight_zero_point int32 packed along out, weight_g_idx
    int-quantized         weight int8 [out, in], weight_scale [1], [out, 1] or [out, groups],
                          weight_zero_point
    float-quantized       weight F8_E4M3, weight_scale [1], [out, 1] or [out / rows, in / columns]
    nvfp4-, mxfp4-pack    see ``nvfp4.py`` and ``mxfp4.py``

``naive-quantized`` is one of the two before it. A value is (code - zero point) * scale.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.quantised.checkpoint import Quantised, f32
from apr_falsify.formats.quantised.fp8 import fp8_weight, is_fp8
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups, flat_vector
from apr_falsify.formats.quantised.mxfp4 import BLOCK, mxfp4_tensor
from apr_falsify.formats.quantised.nvfp4 import nvfp4_weight
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.tensors import Tensor, UnreadableTensor
from apr_falsify.reading import items, mapping, whole

F32 = npt.NDArray[np.float32]

_PARTS = (
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_global_scale"),
    *("weight_g_idx", "input_scale", "input_zero_point", "input_global_scale", "output_scale"),
)
_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", None),
)
_PACKED_WIDTHS = (4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One linear layer, and what config.json says of its weight."""

    model: Quantised
    module: str
    said: Mapping[str, Any]

    def part(self, name: str) -> str:
        """Return the name of one of its tensors."""
        return f"{self.module}.{name}"

    def has(self, name: str) -> bool:
        """Whether the files hold that tensor."""
        return self.part(name) in self.model.tensors


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a compressed-tensors checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit, or a format that is not read here.

    """
    model.unknown("format", _FORMATS)
    groups = mapping(model.config.get("config_groups", {}), "config_groups")
    found: dict[str, Tensor] = {}
    packed = model.modules("weight_packed")
    whole_ones = [
        module
        for module in model.modules("weight")
        if isinstance(model.tensors[f"{module}.weight"], UnreadableTensor)
    ]
    for module in (*packed, *whole_ones):
        layer = _Layer(model=model, module=module, said=_group(model, groups, module))
        found[f"{module}.weight"] = _packed(layer) if module in packed else _unpacked(layer)
    return found, [f"{module}.{part}" for module in (*packed, *whole_ones) for part in _PARTS]


def _group(model: Quantised, groups: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """Return the ``weights`` of the first group that names the layer: its class, its name or a pattern."""
    for key, group in groups.items():
        group = mapping(group, f"config_groups.{key}")
        for target in items(group.get("targets", []), "targets"):
            if _names(str(target), module):
                return mapping(group.get("weights"), f"config_groups.{key}.weights")
    raise ModelError(
        f"no group of quantization_config names the layer {module}, whose weight is quantised",
        where=model.where / "config.json",
        expected="one of config_groups with it among its targets",
    )


def _names(target: str, module: str) -> bool:
    """Whether a target is the layer: every linear one by its class, or this one by name or pattern."""
    if not target.startswith("re:"):
        return target == "Linear" or module.endswith(target)
    try:
        return re.match(target.removeprefix("re:"), module) is not None
    except re.error as error:
        raise ValueError(f"the target {target!r} is no pattern: {error}") from error


def _packed(layer: _Layer) -> GridTensor:
    name = layer.part("weight_packed")
    if layer.model.tensors[name].type in ("I32", "U32"):
        return _integers(layer)
    if layer.has("weight_global_scale") or layer.said.get("strategy") == "tensor_group":
        return nvfp4_weight(layer.model, name, layer.module, "weight_global_scale", divided=True)
    codes = layer.model.matrix(name, ("U8",), name, "[out, in / 2]")
    powers = layer.model.bits_of(layer.part("weight_scale"), ("U8", "F8_E8M0"), name)
    out, width = len(codes), 2 * codes.shape[-1]
    layer.model.check_divides(name, BLOCK, width)
    layer.model.check_shape(
        layer.part("weight_scale"), powers.shape, (out, width // BLOCK), f"a scale for each 32 of {name}"
    )
    return mxfp4_tensor(layer.part("weight"), (out, width), codes, powers)


def _integers(layer: _Layer) -> GridTensor:
    name, bits = layer.part("weight_packed"), whole(layer.said.get("num_bits"), "num_bits")
    layer.model.unknown("num_bits", _PACKED_WIDTHS, config=layer.said)
    words = layer.model.matrix(name, ("I32",), name, f"[out, in * {bits} / 32]")
    shape = layer.model.bits_of(layer.part("weight_shape"), ("I64", "I32"), name)
    layer.model.check_shape(layer.part("weight_shape"), shape.shape, (2,), f"the shape of {name}")
    out, width = int(shape[0]), int(shape[1])
    layer.model.check_shape(name, words.shape, (out, -(-width * bits // 32)), "by weight_shape and num_bits")
    scales, groups = _scales(layer, name, out, width)
    offset = np.float32(1 << (bits - 1))
    zeros = np.full_like(scales, offset) + _packed_zeros(layer, name, scales.shape, bits)

    def read(start: int, stop: int) -> Grid:
        codes = unpacked(words[start:stop], bits)[:, :width]
        return Grid(
            codes=codes.astype(np.float32), scales=scales[start:stop], zeros=zeros[start:stop], groups=groups
        )

    packing = PackedOrder(axis="in", order=tuple(range(8))) if bits == 4 else None
    return GridTensor(
        name=layer.part("weight"), type=f"int{bits}", shape=(out, width), read=read, packing=packing
    )


def _packed_zeros(layer: _Layer, name: str, shape: tuple[int, ...], bits: int) -> F32 | float:
    """Return the zero points [out, groups] of signed codes, 0 where the scheme is symmetric."""
    if not _asymmetric(layer):
        return 0.0
    zero_name = layer.part("weight_zero_point")
    words = layer.model.bits_of(zero_name, ("I32",), name)
    packed = (-(-shape[0] * bits // 32), shape[1])
    layer.model.check_shape(zero_name, words.shape, packed, f"the zero points of {name}, packed along out")
    codes = unpacked(np.ascontiguousarray(words.T), bits)[:, : shape[0]].T
    return np.asarray(codes.astype(np.float32) - (1 << (bits - 1)), dtype=np.float32)


def _asymmetric(layer: _Layer) -> bool:
    return layer.has("weight_zero_point") or layer.said.get("symmetric") is False


def _unpacked(layer: _Layer) -> GridTensor:
    name = layer.part("weight")
    if is_fp8(layer.model, name):
        blocks = layer.said.get("block_structure")
        sizes = None if blocks is None else [whole(size, "block_structure") for size in items(blocks, "it")]
        return fp8_weight(layer.model, name, layer.part("weight_scale"), sizes)
    codes = layer.model.matrix(name, ("I8",), name)
    out, width = codes.shape
    scales, groups = _scales(layer, name, out, width)
    zeros = None
    if _asymmetric(layer):
        zero_name = layer.part("weight_zero_point")
        held = np.asarray(layer.model.bits_of(zero_name, ("I8",), name)).astype(np.float32)
        zeros = _over_groups(layer, zero_name, held, scales.shape)

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=codes[start:stop].astype(np.float32),
            scales=scales[start:stop],
            zeros=None if zeros is None else zeros[start:stop],
            groups=groups,
        )

    return GridTensor(name=name, type="int8", shape=(out, width), read=read)


def _scales(layer: _Layer, name: str, out: int, width: int) -> tuple[F32, npt.NDArray[np.intp]]:
    """Return the scales [out, groups] of a layer, and the group of each input channel."""
    scale_name = layer.part("weight_scale")
    held = f32(layer.model.numbers(scale_name, name))
    size = layer.said.get("group_size") or width
    size = width if size == -1 else whole(size, "group_size")
    layer.model.check_divides(name, size, width)
    scales = _over_groups(layer, scale_name, held, (out, width // size))
    if not layer.has("weight_g_idx"):
        return scales, even_groups(width, size)
    index = np.asarray(layer.model.bits_of(layer.part("weight_g_idx"), ("I32", "I64"), name))
    layer.model.check_shape(
        layer.part("weight_g_idx"), index.shape, (width,), f"one for each channel of {name}"
    )
    if index.min() == -1 == index.max():  # how the format writes that channels are in order
        return scales, even_groups(width, size)
    if index.min() < 0 or index.max() >= width // size:
        raise layer.model.refusal(
            layer.part("weight_g_idx"),
            "names a group that is none",
            expected=f"groups from 0 to {width // size - 1}",
        )
    return scales, index.astype(np.intp)


def _over_groups(layer: _Layer, name: str, held: F32, shape: tuple[int, ...]) -> F32:
    """Return [out, groups] of what is held for the whole tensor, for each row, or for each group."""
    if held.shape in ((), (1,), (1, 1)) or (shape[1] == 1 and held.shape == (shape[0],)):
        return np.broadcast_to(flat_vector(held, shape[0]), shape)
    layer.model.check_shape(name, held.shape, shape, "by the shape of the weight and group_size")
    return held
