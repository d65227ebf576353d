"""MXFP4: four-bit floats (E2M1), and for each 32 of them a power of two (E8M0), as OCP's Microscaling has it.

gpt-oss keeps all experts in one tensor, which transformers dequantises to [experts, in, out]: ``X_blocks``
uint8 [experts, out, in / 32, 16], the first of two codes in the lower half of a byte, and ``X_scales`` uint8
[experts, out, in / 32]. compressed-tensors has a linear layer in ``weight_packed`` [out, in / 2] and
``weight_scale`` [out, in / 32].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

from apr_falsify.formats.quantised.checkpoint import Quantised
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups
from apr_falsify.formats.quantised.levels import FP4_E2M1, powers_of_two
from apr_falsify.formats.quantised.packing import unpacked
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.views import TurnedExperts, ViewedTensor

BLOCK = 32
_BLOCKS, _SCALES = "_blocks", "_scales"
LOW_FIRST = PackedOrder(axis="in", order=(0, 1))
"""The first of two codes lies in the lower half of a byte."""


def weights(model: Quantised) -> tuple[Mapping[str, Tensor], Collection[str]]:
    """Return the weights of a checkpoint with gpt-oss's tensors, and what they are made of.

    Raises:
        ModelError: scales are missing or do not fit the blocks.

    """
    names = [name.removesuffix(_BLOCKS) for name in model.tensors if name.endswith(_BLOCKS)]
    found: dict[str, Tensor] = {
        name: ViewedTensor(base=tensor, view=TurnedExperts()) if len(tensor.shape) == 3 else tensor
        for name, tensor in ((name, _of_blocks(model, name)) for name in names)
    }
    return found, [f"{name}{part}" for name in names for part in (_BLOCKS, _SCALES)]


def _of_blocks(model: Quantised, name: str) -> GridTensor:
    blocks, scales = f"{name}{_BLOCKS}", f"{name}{_SCALES}"
    codes = model.bits_of(blocks, ("U8",), blocks)
    powers = model.bits_of(scales, ("U8", "F8_E8M0"), blocks)
    if codes.ndim < 3 or codes.shape[-1] != BLOCK // 2:
        raise model.refusal(blocks, f"has the shape {list(codes.shape)}", expected="[..., out, in / 32, 16]")
    model.check_shape(scales, powers.shape, codes.shape[:-1], f"a scale for each block of {blocks}")
    shape = (*codes.shape[:-2], codes.shape[-2] * BLOCK)
    rows = codes.reshape(-1, shape[-1] // 2)
    return mxfp4_tensor(name, shape, rows, powers.reshape(len(rows), -1))


def mxfp4_tensor(
    name: str, shape: tuple[int, ...], codes: npt.NDArray[Any], powers: npt.NDArray[Any]
) -> GridTensor:
    """Return the tensor of ``codes`` [rows, in / 2] and of the bytes of their scales [rows, in / 32]."""

    def read(start: int, stop: int) -> Grid:
        return Grid(
            codes=FP4_E2M1[unpacked(codes[start:stop], 4)],
            scales=powers_of_two(powers[start:stop]),
            groups=even_groups(shape[-1], BLOCK),
        )

    return GridTensor(name=name, type="mxfp4", shape=shape, read=read, packing=LOW_FIRST)
