"""NVFP4: four-bit floats (E2M1) with two scales: F8_E4M3 for each 16 of them, and one f32 for the tensor.

TensorRT Model Optimizer (``modelopt``) multiplies with both: ``weight`` uint8 [out, in / 2], ``weight_scale``
[out, in / 16], ``weight_scale_2``. compressed-tensors has ``weight_packed``, ``weight_scale`` and
``weight_global_scale``, by which the scales are divided. The FP8 of ``modelopt`` is that of ``fp8.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from apr_falsify.formats.quantised.checkpoint import Quantised, f32
from apr_falsify.formats.quantised.fp8 import fp8_weight, is_fp8
from apr_falsify.formats.quantised.grid import Grid, GridTensor, even_groups
from apr_falsify.formats.quantised.levels import FP4_E2M1, FP8
from apr_falsify.formats.quantised.mxfp4 import LOW_FIRST
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.tensors import Tensor, UnreadableTensor

BLOCK = 16
_PARTS = ("weight_scale", "weight_scale_2", "input_scale")


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a Model Optimizer checkpoint, and what they are made of.

    Raises:
        ModelError: a part is missing or does not fit, or another algorithm than NVFP4 and FP8.

    """
    model.unknown("quant_algo", ("NVFP4", "FP8"))
    found: dict[str, Tensor] = {}
    modules = []
    for module in model.modules("weight"):
        name = f"{module}.weight"
        if is_fp8(model, name):
            found[name] = fp8_weight(model, name, f"{module}.weight_scale")
        elif isinstance(model.tensors[name], UnreadableTensor):
            found[name] = nvfp4_weight(model, name, module, "weight_scale_2", divided=False)
        else:
            continue
        modules.append(module)
    return found, [f"{module}.{part}" for module in modules for part in _PARTS]


def nvfp4_weight(model: Quantised, packed: str, module: str, second: str, *, divided: bool) -> GridTensor:
    """Return the weight of a linear layer.

    Args:
        model: the checkpoint.
        packed: the tensor of its codes.
        module: the layer.
        second: what its second scale is called.
        divided: whether the first scales are divided by the second, not multiplied with it.

    Raises:
        ModelError: a scale is missing, or does not fit the codes.

    """
    codes = model.matrix(packed, ("U8",), packed, "[out, in / 2]")
    scale_name = f"{module}.weight_scale"
    scales = model.bits_of(scale_name, ("F8_E4M3",), packed)
    second_tensor = model.numbers(f"{module}.{second}", packed)
    out, width = codes.shape[0], 2 * codes.shape[1]
    model.check_divides(packed, BLOCK, width)
    model.check_shape(scale_name, scales.shape, (out, width // BLOCK), f"a scale for each 16 of {packed}")
    if int(np.prod(second_tensor.shape)) != 1:
        raise model.refusal(
            f"{module}.{second}", f"has the shape {list(second_tensor.shape)}", expected="one number"
        )
    outer = np.float32(f32(second_tensor).reshape(-1)[0])

    def read(start: int, stop: int) -> Grid:
        inner = FP8["F8_E4M3"][scales[start:stop]]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            both = inner / outer if divided else inner * outer
        return Grid(
            codes=FP4_E2M1[unpacked(codes[start:stop], 4)],
            scales=both,
            groups=even_groups(width, BLOCK),
        )

    name = f"{module}.weight"
    return GridTensor(name=name, type="nvfp4", shape=(out, width), read=read, packing=LOW_FIRST)
