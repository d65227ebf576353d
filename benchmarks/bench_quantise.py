"""Claim: blocks of few bits are those of the real programs to the bit, on 1e6 values of every format.

The values are of 22 kinds (``tests/edge_values.py``): random ones, and ones engineered to lie on an edge
between two integers or beside it, subnormal, empty, huge. llama.cpp's CPU back end quantises them through its
library (llama-cpp-python); ``apr``, where it is on PATH, multiplies them with weights that each pick one, so
that its integers can be read off. Beside it: how many values other orders of operations would get wrong. Ends
with 1 where a value differs, or where nothing was measured.

    python benchmarks/bench_quantise.py
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))  # the values and the probes are shared with the tests

from tests.apr_probe import HIDDEN, Readout, edge_embeddings, readouts, write_probe
from tests.edge_values import KINDS, SIZE, rows_of
from tests.ggml_library import DECODERS, OTHERS, OURS, Library, differing

from apr_falsify.numerics import quantise

F32 = npt.NDArray[np.float32]

VALUES = 1_000_000
ROWS = -(-VALUES // (SIZE * len(KINDS)))
"""Rows of each kind."""


def main() -> int:
    """Print a line for each format, and return the exit code."""
    wrong = 0
    print(f"{'format':32} {'values':>9} {'differ':>7}")
    if importlib.util.find_spec("llama_cpp") is not None:
        wrong += ggml()
    else:
        print("llama-cpp-python is not installed: ggml's formats were not measured")
    if shutil.which("apr"):
        wrong += blocks_of_256()
    else:
        print("no apr on PATH: its blocks of 256 were not measured")
    return int(wrong > 0 or not (importlib.util.find_spec("llama_cpp") or shutil.which("apr")))


def ggml() -> int:
    """Print how many values of ggml's formats differ, and return it."""
    library, wrong = Library(), 0
    for kind in OURS:
        wrong += _line(f"llama.cpp {kind.lower()}", *_compared(library.from_float(kind), kind))
    for kind, ours in {"F16": quantise.f16, "BF16": quantise.bf16}.items():
        wrong += _line(f"llama.cpp {kind.lower()}", *_rounded(library, kind, ours))
    for size in (64, 128):
        wrong += _line(f"llama.cpp turned by {size}", *_turned(library, size))
    print("on a processor without AVX:")
    for name, kind in OTHERS.items():
        _line(f"  {name}", *_compared(library.named(name, kind), kind))
    return wrong


def _line(name: str, values: int, differ: int) -> int:
    print(f"{name:32} {values:9} {differ:7}", flush=True)
    return differ


def _compared(quantised: Callable[[F32], npt.NDArray[np.uint8]], kind: str) -> tuple[int, int]:
    count = 0
    for values in KINDS:
        rows = rows_of(values, ROWS)
        count += sum(
            int(where.sum()) for where in differing(kind, DECODERS[kind](quantised(rows)), rows).values()
        )
    return ROWS * SIZE * len(KINDS), count


def _rounded(library: Library, kind: str, ours: Callable[[F32], quantise.F64]) -> tuple[int, int]:
    count, number = 0, gguf.GGMLQuantizationType[kind]
    for values in KINDS:
        rows = rows_of(values, ROWS)
        found = gguf.quants.dequantize(library.from_float(kind)(rows).reshape(ROWS, -1), number)
        count += int(np.count_nonzero(found != ours(rows)))
    return ROWS * SIZE * len(KINDS), count


def _turned(library: Library, size: int) -> tuple[int, int]:
    count = 0
    for values in KINDS:
        rows = rows_of(values, ROWS).reshape(-1, size)
        with np.errstate(over="ignore"):
            count += int(np.count_nonzero(quantise.hadamard_rotated(rows, size) != library.turned(rows)))
    return ROWS * SIZE * len(KINDS), count


def blocks_of_256() -> int:
    """Print how many values of apr's blocks of 256 differ, and return it."""
    values, differ, others = 0, 0, Counter[str]()
    for seed in range(3):
        for readout in _probed(seed):
            values += readout.inputs.size
            differ += readout.differing
            others.update(_other_orders(readout))
    _line("apr blocks of 256", values, differ)
    print("apr's, were they made otherwise:")
    for name, count in others.items():
        _line(f"  {name}", values, count)
    return differ


def _probed(seed: int) -> list[Readout]:
    rows = np.concatenate(
        [rows_of("edges of 255 levels", 28, seed + 10), *(rows_of(kind, 4, seed) for kind in KINDS)]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = write_probe(Path(folder) / "probe.gguf", edge_embeddings(seed), rows.reshape(-1, HIDDEN), seed)
        return list(readouts(path))


ORDERS: Mapping[str, Callable[[F32, F32], F32]] = {
    "x / scale": lambda x, scale: _away(x / scale),
    "x * (127 / max)": lambda x, scale: _away(x * (np.float32(127) / np.abs(x).max(axis=-1, keepdims=True))),
    "ties to even": lambda x, scale: np.rint(x * (np.float32(1) / scale)),
    "a half added and cut off": lambda x, scale: np.trunc(
        x * (np.float32(1) / scale) + np.copysign(np.float32(0.5), x)
    ),
}


def _away(values: F32) -> F32:
    whole = np.trunc(values)
    return whole + np.copysign((np.abs(values - whole) >= 0.5).astype(np.float32), values)


def _other_orders(readout: Readout) -> Counter[str]:
    blocks = readout.inputs.reshape(-1, SIZE)
    steps = quantise.STEPS[quantise.q8_256](blocks)
    scale = steps.scale[:, :1].astype(np.float32)
    usual = np.isfinite(blocks).all(axis=-1) & (np.abs(blocks).max(axis=-1) > 1e-10)
    with np.errstate(all="ignore"):
        made = {name: order(blocks, scale) for name, order in ORDERS.items()}
    return Counter(
        {name: int(np.count_nonzero((found != steps.quants)[usual])) for name, found in made.items()}
    )


if __name__ == "__main__":
    sys.exit(main())
