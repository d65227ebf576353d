"""FP8: eight-bit floats with a scale for the whole tensor, for each output channel, or for each block.

``fp8`` (as DeepSeek-V3 and transformers' FineGrainedFP8 write it) has, beside each weight of F8_E4M3,
``weight_scale_inv``: what a block is multiplied with, in spite of its name, of shape [out / 128, in / 128] by
``weight_block_size``, rounded up; or a single number. ``fbgemm_fp8`` has ``weight_scale`` [out, 1].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.quantised.checkpoint import Quantised, f32
from apr_falsify.formats.quantised.grid import Grid, GridTensor, even_groups, flat_vector, of_blocks
from apr_falsify.formats.quantised.levels import FP8, powers_of_two
from apr_falsify.formats.tensors import PlainTensor, Tensor, UnreadableTensor
from apr_falsify.reading import items, whole

_SCALES = ("weight_scale_inv", "weight_scale")
_OTHERS = ("activation_scale", "input_scale", "input_scale_ub")


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of an FP8 checkpoint, and what they are made of.

    Raises:
        ModelError: a scale is missing or does not fit the weight.

    """
    blocks = model.config.get("weight_block_size")
    sizes = None if blocks is None else [whole(size, "weight_block_size") for size in items(blocks, "blocks")]
    modules = [module for module in model.modules("weight") if is_fp8(model, f"{module}.weight")]
    found = {}
    for module in modules:
        scale = next((part for part in _SCALES if f"{module}.{part}" in model.tensors), _SCALES[0])
        found[f"{module}.weight"] = fp8_weight(model, f"{module}.weight", f"{module}.{scale}", sizes)
    return found, [f"{module}.{part}" for module in modules for part in (*_SCALES, *_OTHERS)]


def is_fp8(model: Quantised, name: str) -> bool:
    """Whether a tensor holds eight-bit floats."""
    tensor = model.tensors[name]
    return isinstance(tensor, UnreadableTensor) and tensor.type in FP8


def fp8_weight(
    model: Quantised, name: str, scale_name: str, block: Sequence[int] | None = None
) -> GridTensor:
    """Return the weight ``name``, of eight-bit floats.

    Args:
        model: the checkpoint.
        name: the weight, [out, in].
        scale_name: its scales: one number, one for each output channel, or one for each block.
        block: rows and columns of a block, ``None`` where there are none.

    Raises:
        ModelError: the scales are missing, or fit in none of these ways.

    """
    bits = model.matrix(name, FP8, name)
    table = FP8[model.tensors[name].type]
    out, width = bits.shape
    scales = scale_values(model, scale_name, name)
    if scales.size in (1, out) and scales.shape in ((), (1,), (1, 1), (out,), (out, 1)):
        height, spread, grid = 1, width, flat_vector(scales, out)
    elif block is not None and len(block) == 2 and min(block) > 0:
        height, spread = block
        expected = (-(-out // height), -(-width // spread))
        model.check_shape(scale_name, scales.shape, expected, f"one for each block {list(block)} of {name}")
        grid = scales
    else:
        shapes = f"[1] or [{out}, 1], or weight_block_size in config.json"
        raise model.refusal(scale_name, f"has the shape {list(scales.shape)}", expected=shapes)

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=table[bits[start:stop]],
            scales=of_blocks(grid, height, start, stop),
            groups=even_groups(width, spread),
        )

    kind = model.tensors[name].type.lower().replace("f8", "fp8")
    return GridTensor(name=name, type=kind, shape=(out, width), read=read, block_rows=height)


def scale_values(model: Quantised, name: str, needed_by: str) -> npt.NDArray[np.float32]:
    """Return scales whole, in f32: plain numbers, or powers of two in bytes (E8M0)."""
    if isinstance(model.tensors.get(name), PlainTensor) or name not in model.tensors:
        return f32(model.numbers(name, needed_by))
    return powers_of_two(model.bits_of(name, ("U8", "F8_E8M0"), needed_by))
