"""Checkpoints with quantised weights, written as the tools of each scheme lay them out.

What each tensor holds stands in ``formats/quantised/``; here it is the other way round, from plain weights to
their files, by rounding to nearest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.seeding.grids import PRODUCTS
from apr_falsify.exam.seeding.parts import Parts
from apr_falsify.formats.quantised.levels import FP4_E2M1, FP8

F32 = npt.NDArray[np.float32]

GROUP = 32
FP8_BLOCK = 64
NF4_BLOCK = 64
NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""The sixteen levels of NF4 (Dettmers et al. 2023)."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output channel at each place of a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A way to quantise a linear layer.

    Attributes:
        name: what tables call it, and the kind of a setting.
        config: config.json's ``quantization_config``.
        parts: gives the tensors of a layer, by their part of the name, from its weight [out, in].

    """

    name: str
    config: Mapping[str, Any]
    parts: Callable[[F32], Parts]


def _integers(weight: F32, groups: npt.NDArray[np.intp]) -> tuple[Any, Any, Any]:
    """Return codes [out, in], zero points and scales [out, groups] of four bits over each group's range."""
    count = int(groups.max()) + 1
    by_group = np.stack([weight[:, groups == group] for group in range(count)], axis=1).astype(np.float64)
    low, high = np.minimum(by_group.min(axis=2), 0), np.maximum(by_group.max(axis=2), 0)
    scales = np.maximum((high - low) / 15, 1e-6).astype(np.float16)
    wide = scales.astype(np.float64)
    zeros = np.clip(np.rint(-low / wide), 0, 15)
    codes = np.clip(np.rint(weight / wide[:, groups]) + zeros[:, groups], 0, 15)
    return codes.astype(np.uint32), zeros.astype(np.uint32), scales


def _words(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """Pack eight codes of the last axis into a word, the first lowest."""
    eights = codes.reshape(*codes.shape[:-1], -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    return np.asarray(np.bitwise_or.reduce(eights, axis=-1).view(np.int32))


def _gptq(weight: F32, order: npt.NDArray[np.intp] | None = None) -> Parts:
    groups = np.arange(weight.shape[1]) // GROUP
    groups = groups if order is None else groups[order]
    codes, zeros, scales = _integers(weight, groups)
    return {
        "qweight": _words(codes).T,
        "qzeros": _words((zeros - 1).T & np.uint32(15)),
        "scales": scales.T,
        "g_idx": groups.astype(np.int32),
    }


def _act_order(weight: F32) -> Parts:
    return _gptq(weight, np.random.default_rng(weight.shape[1]).permutation(weight.shape[1]))


def _awq(weight: F32) -> Parts:
    codes, zeros, scales = _integers(weight, np.arange(weight.shape[1]) // GROUP)

    def packed(by_channel: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        eights = by_channel.T.reshape(by_channel.shape[1], -1, 8)[..., AWQ_ORDER]
        return _words(eights.reshape(by_channel.shape[1], -1))

    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales.T}


def _blocks(weight: F32, size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return groups of input channels [out, groups, size] and the largest magnitude of each [out, groups]."""
    blocks = weight.reshape(len(weight), -1, size).astype(np.float64)
    return blocks, np.maximum(np.abs(blocks).max(axis=-1), 1e-9)


def _int4(weight: F32) -> Parts:
    blocks, largest = _blocks(weight, GROUP)
    scales = (largest / 7).astype(np.float16)
    codes = np.clip(np.rint(blocks / scales.astype(np.float64)[..., None]), -8, 7) + 8
    return {
        "weight_packed": _words(codes.reshape(weight.shape).astype(np.uint32)),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, dtype=np.int64),
    }


def _int8(weight: F32) -> Parts:
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return {"weight": np.rint(weight / scales).astype(np.int8), "weight_scale": scales}


def _llm_int8(weight: F32) -> Parts:
    largest = np.abs(weight).max(axis=1).astype(np.float32)
    return {"weight": np.rint(weight / largest[:, None] * 127).astype(np.int8), "SCB": largest}


def nearest(values: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return for each value the code of the number in ``table`` that is nearest."""
    known = np.flatnonzero(np.isfinite(table))
    order = known[np.argsort(table[known], kind="stable")]
    levels = table[order].astype(np.float64)
    return order[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)].astype(np.uint8)


def _fp8(weight: F32) -> Parts:
    out, width = weight.shape
    rows, columns = np.arange(out) // FP8_BLOCK, np.arange(width) // FP8_BLOCK
    largest = np.zeros((rows[-1] + 1, columns[-1] + 1))
    np.maximum.at(largest, (rows[:, None], columns[None]), np.abs(weight))
    scales = (np.maximum(largest, 1e-9) / 448).astype(np.float32)
    codes = nearest(weight / scales[rows[:, None], columns[None]], FP8["F8_E4M3"])
    return {"weight": codes, "weight_scale_inv": scales}


def _halves(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Put two codes into a byte, the first in its lower half."""
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4), dtype=np.uint8)


def _nvfp4(weight: F32) -> Parts:
    blocks, largest = _blocks(weight, 16)
    outer = np.float32(largest.max() / (6 * 448))
    inner = nearest(largest / 6 / outer, FP8["F8_E4M3"])
    scales = np.maximum(FP8["F8_E4M3"][inner].astype(np.float64) * outer, 1e-12)
    codes = nearest(blocks / scales[..., None], FP4_E2M1).reshape(weight.shape)
    return {"weight": _halves(codes), "weight_scale": inner, "weight_scale_2": np.array([outer])}


def _mxfp4(weight: F32) -> Parts:
    blocks, largest = _blocks(weight, 32)
    powers = np.floor(np.log2(largest)).astype(np.int64) - 2
    codes = nearest(blocks / np.exp2(powers)[..., None], FP4_E2M1).reshape(weight.shape)
    return {"weight_packed": _halves(codes), "weight_scale": (powers + 127).astype(np.uint8)}


def _nf4(weight: F32) -> Parts:
    blocks, largest = _blocks(weight, NF4_BLOCK)
    codes = nearest(blocks / largest[..., None], np.array(NF4, dtype=np.float32)).reshape(-1)
    state = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "float16", "shape": list(weight.shape)}
    return {
        "weight": ((codes[::2] << 4) | codes[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": largest.reshape(-1).astype(np.float32),
        "weight.quant_map": np.array(NF4, dtype=np.float32),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), dtype=np.uint8),
    }


def _compressed(kind: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups}


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="gptq",
            config={"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
            parts=_gptq,
        ),
        Scheme(
            name="gptq act-order",
            config={"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
            parts=_act_order,
        ),
        Scheme(
            name="awq",
            config={"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
            parts=_awq,
        ),
        Scheme(
            name="int4 groups",
            config=_compressed("pack-quantized", num_bits=4, group_size=GROUP, symmetric=True),
            parts=_int4,
        ),
        Scheme(
            name="int8 rows",
            config=_compressed("int-quantized", num_bits=8, strategy="channel", symmetric=True),
            parts=_int8,
        ),
        Scheme(
            name="fp8 blocks",
            config={"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]},
            parts=_fp8,
        ),
        Scheme(name="nvfp4", config={"quant_method": "modelopt", "quant_algo": "NVFP4"}, parts=_nvfp4),
        Scheme(
            name="mxfp4",
            config=_compressed("mxfp4-pack-quantized", num_bits=4, group_size=32, strategy="group"),
            parts=_mxfp4,
        ),
        Scheme(name="nf4", config={"quant_method": "bitsandbytes", "load_in_4bit": True}, parts=_nf4),
        Scheme(
            name="llm.int8", config={"quant_method": "bitsandbytes", "load_in_8bit": True}, parts=_llm_int8
        ),
    )
}
"""Name -> scheme."""

_FP8_PARTS: Mapping[str, tuple[str, ...]] = {"fp8 blocks": ("weight",), "nvfp4": ("weight_scale",)}
"""Scheme -> the parts whose bytes are eight-bit floats."""


def write_quantised(
    directory: Path,
    scheme: Scheme,
    config: Mapping[str, Any],
    plain: Mapping[str, npt.NDArray[Any]],
    names: Mapping[str, str],
    edit: Callable[[Parts], None] | None = None,
) -> Path:
    """Write a HuggingFace directory whose linear layers are quantised.

    Args:
        directory: where; it must not exist.
        scheme: how they are quantised.
        config: the config.json of the plain model.
        plain: its tensors by name.
        names: role -> template of a tensor's name.
        edit: changes what the files hold.

    """
    modules = [names[role].removesuffix(".weight").partition("{n}")[2] for role in PRODUCTS]
    held: Parts = {}
    for name, values in plain.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(tuple(modules)):
            parts = scheme.parts(np.asarray(values, dtype=np.float32))
            held.update({f"{module}.{part}": array for part, array in parts.items()})
        else:
            held[name] = values
    if edit is not None:
        edit(held)
    directory.mkdir(parents=True)
    said = {**config, "quantization_config": dict(scheme.config)}
    (directory / "config.json").write_text(json.dumps(said), encoding="utf-8")
    _save(directory / "model.safetensors", held, _FP8_PARTS.get(scheme.name, ()))
    return directory


_TYPES = {
    **{"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"},
}


def _save(path: Path, held: Parts, small_floats: tuple[str, ...]) -> None:
    """Write a safetensors file: the length of a header in JSON, the header, and the tensors' bytes."""
    header: dict[str, Any] = {}
    blobs = []
    at = 0
    for name, array in held.items():
        blob = np.ascontiguousarray(array).tobytes()
        small = array.dtype == np.uint8 and name.rpartition("_proj.")[2] in small_floats
        kind = "F8_E4M3" if small else _TYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))
