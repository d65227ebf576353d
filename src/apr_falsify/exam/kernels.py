"""Which machine code computes a run: libraries choose it by the processor, or as a variable says.

Another kernel sums in another order and rounds otherwise, rightly so. A correct run must be acquitted under
each of them. The variables are read when a library is loaded, so every kernel has a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OWN = "own"
"""The kernels that the libraries choose by themselves, on one thread."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_NUMPY = "NPY_DISABLE_CPU_FEATURES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernels that a worker process shall compute with.

    Attributes:
        name: what tables call it.
        threads: how many threads a library may use.
        variables: variables of libraries -> the value of each.
        numpy_without: beginnings of the names of processor features that NumPy shall not use.

    """

    name: str
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    numpy_without: tuple[str, ...] = ()

    def environment(self, around: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process that uses it, given the one ``around``."""
        known = {*_THREADS, _NUMPY, *(name for kernel in KERNELS.values() for name in kernel.variables)}
        kept = {name: value for name, value in around.items() if name not in known}
        unused = [name for name in _numpy_features() if name.startswith(self.numpy_without)]
        numpy = {_NUMPY: " ".join(unused)} if self.numpy_without and unused else {}
        return {**kept, **dict.fromkeys(_THREADS, str(self.threads)), **self.variables, **numpy}


_AVX2: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "APR_FORCE_ISA": "avx2",
}
_AVX: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX",
    "MKL_ENABLE_INSTRUCTIONS": "AVX",
    "MKL_CBWR": "COMPATIBLE",  # other processors than Intel's do not heed the line above
    "OPENBLAS_CORETYPE": "Sandybridge",
}
_SSE: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
    "APR_FORCE_ISA": "scalar",
}
_WIDER_THAN_AVX2 = ("AVX512", "X86_V4")

KERNELS: Mapping[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(name=OWN),
        Kernel(name="own on 2 threads", threads=2),
        Kernel(name="avx2", variables=_AVX2, numpy_without=_WIDER_THAN_AVX2),
        Kernel(name="avx on 2 threads", threads=2, variables=_AVX, numpy_without=_WIDER_THAN_AVX2),
        Kernel(
            name="sse",
            variables=_SSE,
            numpy_without=(*_WIDER_THAN_AVX2, "X86_V3", "AVX", "FMA", "F16C"),
        ),
    )
}
"""Name -> kernel. Where a processor lacks one, its libraries take another, and the result says which."""


def _numpy_features() -> list[str]:
    """Return the processor features beyond its baseline that NumPy found here and would use."""
    config: Any = np.show_config(mode="dicts")
    return list(config.get("SIMD Extensions", {}).get("found", []))


def numpy_facts() -> dict[str, str]:
    """Return which kernels NumPy multiplies with here, and a digest of what it makes of fixed operands."""
    return {"openblas": _openblas_core(), "numpy_digest": _digest()}


def operands() -> list[tuple[np.typing.NDArray[np.float32], np.typing.NDArray[np.float32]]]:
    """Return pairs of matrices [S, K] and [N, K] whose products tell kernels apart."""
    rng = np.random.default_rng(0)
    shapes = ((1, 3584, 512), (7, 256, 512), (64, 1000, 96), (33, 64, 300))
    return [
        (rng.standard_normal((s, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32))
        for s, k, n in shapes
    ]


def _digest() -> str:
    found = hashlib.sha256()
    for x, w in operands():
        wide = x.astype(np.float64)
        for made in (x @ w.T, wide @ w.T.astype(np.float64), np.exp(x), np.exp(wide), np.tanh(x)):
            found.update(np.ascontiguousarray(made).tobytes())
    return found.hexdigest()[:12]


def _openblas_core() -> str:
    """Return what OpenBLAS calls the kernels that it chose, ``unknown`` where it does not say."""
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        for path in sorted({line.split()[-1] for line in lines if "openblas" in line}):
            library = ctypes.CDLL(path)
            for name in (
                "scipy_openblas_get_corename64_",
                "openblas_get_corename64_",
                "openblas_get_corename",
            ):
                if hasattr(library, name):
                    ask = getattr(library, name)
                    ask.restype = ctypes.c_char_p
                    return str(ask().decode())
    return "unknown"
