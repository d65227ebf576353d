"""llama.cpp's own quantisers, called through the library that llama-cpp-python brings."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from apr_falsify.numerics import quantise
from apr_falsify.numerics.quantise import Values
from tests.edge_values import TABLE

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

OURS: Mapping[str, Callable[[Values], F64]] = {
    "Q8_0": quantise.q8_0,
    "Q8_1": quantise.q8_0,
    "Q8_K": quantise.q8_k,
    "Q4_0": quantise.q4_0,
    "Q4_1": quantise.q4_1,
    "Q5_0": quantise.q5_0,
    "Q5_1": quantise.q5_1,
    "IQ4_NL": quantise.iq4_nl,
}
"""Type -> what we make of values in it."""

OTHERS: Mapping[str, str] = {"quantize_row_q8_0_ref": "Q8_0", "quantize_row_q8_1_ref": "Q8_1"}
"""Quantisers that processors without AVX use, and whose result differs -> their type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What quantised rows hold: integers [rows, blocks, size], the others [rows, blocks]."""

    quants: F64
    scale: F64
    minimum: F64 | None = None
    total: F64 | None = None


class _Traits(ctypes.Structure):
    """``ggml_type_traits_cpu``, as far as it is used here."""

    _fields_ = (("from_float", ctypes.c_void_p),)


_QUANTISER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Library:
    """ggml's base and CPU libraries.

    ``from_float`` is what the runtime calls; the other functions by name are those of other processors.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent / "lib"
        self.base, self.cpu = (
            ctypes.CDLL(str(next(folder.glob(f"libggml-{name}.*"))), mode=ctypes.RTLD_GLOBAL)
            for name in ("base", "cpu")
        )
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_Traits)
        self.cpu.ggml_cpu_init()
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for name, arguments in (
            ("ggml_init", (_Parameters,)),
            ("ggml_free", (pointer,)),
            ("ggml_new_tensor_2d", (pointer, ctypes.c_int, number, number)),
            ("ggml_get_data", (pointer,)),
            ("ggml_mul_mat", (pointer, pointer, pointer)),
            ("ggml_mul_mat_set_hint", (pointer, ctypes.c_int)),
            ("ggml_new_graph", (pointer,)),
            ("ggml_build_forward_expand", (pointer, pointer)),
        ):
            function = getattr(self.base, name)
            function.argtypes, function.restype = arguments, pointer
        self.cpu.ggml_graph_compute_with_ctx.argtypes = (pointer, pointer, ctypes.c_int)

    def from_float(self, kind: str) -> Callable[[F32], Bytes]:
        """Return what the CPU back end quantises rows with."""
        number = gguf.GGMLQuantizationType[kind].value
        pointer = self.cpu.ggml_get_type_traits_cpu(number).contents.from_float
        return _called(_QUANTISER(pointer), kind)

    def named(self, name: str, kind: str) -> Callable[[F32], Bytes]:
        """Return the quantiser that either library exports by ``name``."""
        library = self.cpu if hasattr(self.cpu, name) else self.base
        return _called(_QUANTISER((name, library)), kind)

    def four_rows(self, kind: str, rows: F32) -> F64:
        """Return what four rows stand for that are quantised at once, as they are for reordered weights."""
        scale, width = (np.float16, 32) if kind == "Q8_0" else (np.float32, 256)
        sums = 0 if kind == "Q8_0" else 128
        size = 4 * (np.dtype(scale).itemsize + width)
        rows = np.ascontiguousarray(rows, np.float32)
        packed = np.zeros((rows.shape[1] // width, size + sums), np.uint8)
        name = {"Q8_0": "ggml_quantize_mat_q8_0_4x8", "Q8_K": "ggml_quantize_mat_q8_K_4x8"}[kind]
        _QUANTISER((name, self.cpu))(rows.ctypes.data, packed.ctypes.data, rows.shape[1])
        scales = np.ascontiguousarray(packed[:, : size - 4 * width]).view(scale).astype(np.float64)
        quants = _signed(packed[:, size - 4 * width : size]).reshape(len(packed), -1, 4, 8)
        with np.errstate(invalid="ignore"):
            return (quants * scales[:, None, :, None]).transpose(2, 0, 1, 3).reshape(rows.shape)

    def turned(self, rows: F32) -> F32:
        """Return each row times the Hadamard matrix of its length, as llama.cpp turns q, k and v."""
        count, size = rows.shape
        context = self.base.ggml_init(_Parameters(mem_size=3 * rows.nbytes + 4 * size * size + (1 << 20)))
        matrix = self.base.ggml_new_tensor_2d(context, 0, size, size)
        values = self.base.ggml_new_tensor_2d(context, 0, size, count)
        ctypes.memmove(self.base.ggml_get_data(values), np.ascontiguousarray(rows).ctypes.data, rows.nbytes)
        result = self.base.ggml_mul_mat(context, matrix, values)
        self.base.ggml_mul_mat_set_hint(result, _HADAMARD)
        graph = self.base.ggml_new_graph(context)
        self.base.ggml_build_forward_expand(graph, result)
        assert self.cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
        found = np.zeros(rows.shape, np.float32)
        ctypes.memmove(found.ctypes.data, self.base.ggml_get_data(result), found.nbytes)
        self.base.ggml_free(context)
        return found


_HADAMARD = 1
"""``GGML_HINT_SRC0_IS_HADAMARD``: the matrix itself is not read then."""


class _Parameters(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _called(function: Callable[[int, int, int], None], kind: str) -> Callable[[F32], Bytes]:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if kind == "Q8_1":
        size = 36  # the package says 40: the struct had f32 scales once

    def quantised(rows: F32) -> Bytes:
        rows = np.ascontiguousarray(rows, np.float32)
        result = np.zeros((len(rows), rows.shape[1] // block * size), np.uint8)
        function(rows.ctypes.data, result.ctypes.data, rows.size)
        return result.reshape(len(rows), -1, size)

    return quantised


def _half(blocks: Bytes, at: int) -> F64:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float64)


def _nibbles(packed: Bytes) -> F64:
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float64)


def _fifth_bits(packed: Bytes) -> F64:
    return 16.0 * np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little")


def _signed(packed: Bytes) -> F64:
    return np.ascontiguousarray(packed).view(np.int8).astype(np.float64)


def _q8_k(blocks: Bytes) -> Decoded:
    scale = np.ascontiguousarray(blocks[..., :4]).view(np.float32)[..., 0].astype(np.float64)
    return Decoded(quants=_signed(blocks[..., 4:260]), scale=scale)


DECODERS: Mapping[str, Callable[[Bytes], Decoded]] = {
    "Q8_0": lambda b: Decoded(quants=_signed(b[..., 2:]), scale=_half(b, 0)),
    "Q8_1": lambda b: Decoded(quants=_signed(b[..., 4:]), scale=_half(b, 0), total=_half(b, 2)),
    "Q8_K": _q8_k,
    "Q4_0": lambda b: Decoded(quants=_nibbles(b[..., 2:]) - 8, scale=_half(b, 0)),
    "Q4_1": lambda b: Decoded(quants=_nibbles(b[..., 4:]), scale=_half(b, 0), minimum=_half(b, 2)),
    "Q5_0": lambda b: Decoded(quants=_nibbles(b[..., 6:]) + _fifth_bits(b[..., 2:6]) - 16, scale=_half(b, 0)),
    "Q5_1": lambda b: Decoded(
        quants=_nibbles(b[..., 8:]) + _fifth_bits(b[..., 4:8]), scale=_half(b, 0), minimum=_half(b, 2)
    ),
    "IQ4_NL": lambda b: Decoded(
        quants=np.array(TABLE, np.float64)[_nibbles(b[..., 2:]).astype(int)], scale=_half(b, 0)
    ),
}
"""Type -> how its blocks are read; the layouts are those of ggml-common.h."""


def differing(kind: str, found: Decoded, rows: F32) -> Mapping[str, npt.NDArray[np.bool_]]:
    """Return where what the library made of ``rows`` is not what we make of them, number by number.

    The integers of a block do not matter where its scale is 0, its sum not where that is infinite. NaN is the
    same as NaN.
    """
    steps = quantise.STEPS[OURS[kind]](rows)
    quants, scale = steps.quants.reshape(found.quants.shape), steps.scale.reshape(found.quants.shape)[..., 0]
    result = {
        "scale": ~_same(scale, found.scale),
        "integer": (quants != found.quants) & (found.scale != 0)[..., None],
    }
    if found.minimum is not None:
        result["minimum"] = ~_same(quantise.minima(rows), found.minimum)
    if found.total is not None:
        with np.errstate(invalid="ignore"):
            total = quantise.q8_1_block_sums(rows) + np.sum(quants * scale[..., None], axis=-1)
        result["block sum"] = ~_same(total, found.total) & np.isfinite(scale)
    return result


def _same(ours: F64, found: F64) -> npt.NDArray[np.bool_]:
    return np.asarray((ours == found) | (np.isnan(ours) & np.isnan(found)))
