"""GGUF files made with the ``gguf`` package's own writer, for tests of our reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from tests.unit.helpers import random_tensors, roles_of, small_geometry

QUANTISABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""The types that the gguf package can write; the others are made of random blocks."""


def permuted_by_llama_cpp(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return q or k rows in the order in which llama.cpp's convert_hf_to_gguf.py stores them."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def random_blocks(shape: tuple[int, ...], kind: str, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random bytes of a tensor of quantised blocks, the f16 scales among them finite."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    bytes_ = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] // block * size), np.uint8)
    bytes_[..., 1::2] &= 0xBF  # clears an exponent bit of whatever f16 ends there: none is inf or NaN
    return bytes_


def write_gguf(
    path: Path,
    tensors: dict[str, npt.NDArray[Any]],
    metadata: dict[str, Any] | None = None,
    kinds: dict[str, str] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write ``tensors``; ``kinds`` gives the type of raw blocks."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, data in tensors.items():
        kind = (kinds or {}).get(name)
        writer.add_tensor(name, data, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata_of(geometry: Geometry, architecture: str = "llama") -> dict[str, Any]:
    """Return the metadata that a conversion would write for ``geometry``."""
    values = {
        "block_count": geometry.layers,
        "embedding_length": geometry.hidden,
        "feed_forward_length": geometry.intermediate,
        "attention.head_count": geometry.heads,
        "attention.head_count_kv": geometry.kv_heads,
        "attention.key_length": geometry.head_dim,
        "attention.layer_norm_rms_epsilon": geometry.norm_eps,
        "rope.freq_base": geometry.rope.theta,
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def converted(path: Path, **knobs: Any) -> tuple[Path, dict[str, npt.NDArray[np.float32]]]:
    """Convert a random small model as llama.cpp would; return the file and the tensors by HF name."""
    geometry = small_geometry(**knobs)
    row, original = family_of(geometry), random_tensors(geometry)
    architecture = row.gguf_architectures[0]
    tensors = {}
    for role, layer in roles_of(geometry):
        data = original[row.weights[role].format(n=layer)]
        if row.gguf_interleaved and role.partition("_")[0] in ("q", "k"):
            data = permuted_by_llama_cpp(data, geometry.heads if role[0] == "q" else geometry.kv_heads)
        tensors[row.gguf_weights[role].format(n=layer)] = np.ascontiguousarray(data)
    write_gguf(path, tensors, metadata_of(geometry, architecture), architecture=architecture)
    return path, original
