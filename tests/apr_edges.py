"""The tiny Q4_K model with norms and biases of v such that activations lie on edges in every layer.

Where ``x / scale`` and ``x * (1 / scale)`` round to different integers, a replay with the wrong one accuses a
correct run. The weights are found by running the real ``apr``, layer by layer: with a norm's weights set to 1
it writes what they are multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from apr_falsify.formats.aprt import read_aprt
from tests.support import DATA
from tests.unit.apr_files import apr, made
from tests.unit.gguf_models import write_gguf

F32 = npt.NDArray[np.float32]
Vectors = dict[str, F32]
_Vector = Callable[[F32], F32]

BASE = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
RECORDED = DATA / "apr-edges"
LAYERS, KV = 3, 64


def recorded_vectors() -> Vectors:
    """Return the norm weights and biases that were found when ``RECORDED`` was made."""
    with np.load(RECORDED / "vectors.npz") as arrays:
        return dict(arrays)


def with_vectors(path: Path, vectors: Mapping[str, F32]) -> Path:
    """Write the tiny model anew, with other norm weights and biases."""
    reader = gguf.GGUFReader(BASE)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    metadata.pop("general.architecture")
    tensors: dict[str, npt.NDArray[Any]] = {t.name: np.array(t.data) for t in reader.tensors}
    kinds = {t.name: t.tensor_type.name for t in reader.tensors if t.data.dtype == np.uint8}
    return write_gguf(path, {**tensors, **vectors}, metadata, kinds, architecture="qwen2")


def traced(model: Path, folder: Path, stages: str = "all") -> Path:
    """Let ``apr`` import and trace ``model``, all layers; return ``folder``, which it writes."""
    held = made(model.with_suffix(".apr"), "import", model)
    save = ("--save-tensor", stages, "--save-tensor-dir", folder, "--save-tensor-layers", f"0..{LAYERS}")
    done = apr("trace", "--payload", held, *save)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def stage(folder: Path, layer: int, name: str) -> F32:
    """Return what a trace holds of one stage, a row a token."""
    return np.array(read_aprt(folder / f"layer-{layer}" / f"{name}.bin").values).reshape(6, -1)


def found_vectors(folder: Path) -> Vectors:
    """Find vectors that put values on edges: one token's in each norm, the first one's in ``attention``."""
    vectors = {t.name: np.array(t.data) for t in gguf.GGUFReader(BASE).tensors if len(t.shape) == 1}
    for layer in range(LAYERS):
        _place_norm(folder, vectors, layer, "attn_norm", token=1 + layer)
        _place_values(folder, vectors, layer)
        _place_norm(folder, vectors, layer, "ffn_norm", token=5 - layer)
    return vectors


def _place_norm(folder: Path, vectors: Vectors, layer: int, name: str, token: int) -> None:
    key = f"blk.{layer}.{name}.weight"
    ones = {**vectors, key: np.ones_like(vectors[key])}
    normed = stage(traced(with_vectors(folder / "x.gguf", ones), folder / "x", name), layer, name)[token]
    old = vectors[key]
    vectors[key] = _placed(normed * old, lambda wanted: wanted / normed, lambda weight: normed * weight, old)


def _place_values(folder: Path, vectors: Vectors, layer: int) -> None:
    """Place the first token's values, which it alone looks at."""
    key = f"blk.{layer}.attn_v.bias"
    model = with_vectors(folder / "x.gguf", vectors)
    bare = stage(traced(model, folder / "x", "qkv_matmul"), layer, "qkv_matmul")[0, -KV:]
    old = vectors[key]
    vectors[key] = _placed(bare + old, lambda wanted: wanted - bare, lambda bias: bare + bias, old)


def _placed(values: F32, solve: _Vector, apply: _Vector, old: F32) -> F32:
    """Return parameters near ``old`` that make of each value the nearest on which two orders disagree.

    Args:
        values: what ``old`` makes.
        solve: the parameters that about make given values.
        apply: the values that parameters make.
        old: the parameters, which stay where none is found.

    """
    largest = np.abs(values).max()
    scale = np.float32(largest / np.float32(127))
    steps = np.floor(np.abs(values) / scale) + 0.5
    found = old.copy()
    for ulps in (0, 1, -1, 2, -2, 3, -3):
        wanted = np.copysign((steps * scale).astype(np.float32), values)
        wanted = (wanted.view(np.int32) + ulps).view(np.float32)
        for near in (0, 1, -1):
            tried = (solve(wanted).astype(np.float32).view(np.int32) + near).view(np.float32)
            made_of = apply(tried)
            inside = (np.abs(made_of) < largest) & (np.abs(values) < largest)
            made_of = np.where(inside, made_of, values)  # the largest stays what it is
            taken = disagreeing(made_of, scale) & inside
            found = np.where(taken, tried, found)
    return found


def disagreeing(values: F32, scale: npt.NDArray[np.float32] | np.float32) -> npt.NDArray[np.bool_]:
    """Return which values ``x * (1 / scale)`` rounds otherwise than ``x / scale`` or ``x * (127 / max)``."""
    size, largest = np.abs(values), np.abs(values).max(axis=-1, keepdims=True)
    orders = (size * (np.float32(1) / scale), size / scale, size * (np.float32(127) / largest))
    product, quotient, ratio = (np.floor(order + np.float32(0.5)) for order in orders)
    return np.asarray((product != quotient) | (product != ratio))
