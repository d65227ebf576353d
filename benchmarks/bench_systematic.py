"""Claim: what llama.cpp's quantisers do, with importance matrices or without, is no fault of a whole tensor.

Quantises random tensors of eight kinds of values with ``ggml_quantize_chunk`` of the installed
llama-cpp-python, and prints how near each format comes to the limits of ``compare.systematic``: how much
larger it makes a tensor, in units of its squared relative error; how much smaller, in units of its relative
error (both beyond six standard errors); and the noise of its median block. Ends with 1 where a sound tensor
would be accused.

    python benchmarks/bench_systematic.py [SEEDS]
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))  # the kinds of values are shared with the tests

from tests.unit.compare.weight_values import VALUES

from apr_falsify.compare.systematic import systematic
from apr_falsify.compare.weights import _sums

KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SHAPE = (512, 512)

F32 = npt.NDArray[np.float32]


def main() -> int:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    library = _library()
    accused = 0
    print(f"{'format':6} {'tensors':>7} {'larger':>8} {'smaller':>8} {'noise':>6}  accused")
    for kind in KINDS:
        found = [
            _measured(library, kind, name, seed, weighted)
            for name in VALUES
            for seed in range(seeds)
            for weighted in (False, True)
        ]
        larger, smaller, noise = (max(each[i] for each in found) for i in range(3))
        wrong = [told for *_, told in found if told]
        accused += len(wrong)
        print(f"{kind:6} {len(found):7} {larger:8.2f} {smaller:8.2f} {noise:6.2f}  {len(wrong)} {wrong[:1]}")
    print("limits           2.00     0.50   1.50")
    return int(accused > 0)


def _measured(
    library: ctypes.CDLL, kind: str, name: str, seed: int, weighted: bool
) -> tuple[float, float, float, str]:
    rng = np.random.default_rng(seed)
    right = VALUES[name](rng, SHAPE).astype(np.float32)
    importance = np.exp(rng.normal(0, 2, SHAPE[1])).astype(np.float32) if weighted else None
    kept = _quantised(library, kind, right, importance)
    sums = _sums(right.astype(np.float64), kept.astype(np.float64), kind.lower())
    energy, along, noise, along2 = map(float, np.sum(sums.of_rows, axis=1))
    off = along / energy
    squared = noise / energy - off * off
    beyond = max(abs(off) - 6 * math.sqrt(along2) / energy - 1e-3, 0.0)
    larger, smaller = (beyond / squared, 0.0) if off > 0 else (0.0, beyond / math.sqrt(squared))
    return larger, smaller, float(np.median(sums.noise)), systematic([sums])


def _quantised(library: ctypes.CDLL, kind: str, values: F32, importance: F32 | None) -> F32:
    number = gguf.GGMLQuantizationType[kind]
    library.ggml_quantize_init(number.value)
    kept = np.zeros((SHAPE[0], library.ggml_row_size(number.value, SHAPE[1])), np.uint8)
    at = None if importance is None else importance.ctypes.data
    values = np.ascontiguousarray(values)
    library.ggml_quantize_chunk(number.value, values.ctypes.data, kept.ctypes.data, 0, *SHAPE, at)
    result: F32 = gguf.quants.dequantize(kept, number)
    return result


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        sys.exit("llama-cpp-python is not installed: pip install 'apr-falsify[llama-cpp]'")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("lib/libggml-base.*"))))
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointers = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    library.ggml_quantize_chunk.argtypes = (*pointers, *(ctypes.c_int64,) * 3, ctypes.c_void_p)
    return library


if __name__ == "__main__":
    sys.exit(main())
