"""Checkpoints of a real model's width, drawn as blocks: nothing is quantised, one tensor at a time in memory.

A block format's bytes are drawn at random, with scales that give the weights the spread of trained ones. So
a file of half a gigabyte takes seconds, where quantising it takes minutes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.checkpoints import MASSIVE, ONCE, Place, add_metadata, places_of
from apr_falsify.model.families import family_of
from apr_falsify.model.names import ROLE_AXES
from apr_falsify.model.shape import Geometry

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Draw = Callable[[np.random.Generator, tuple[int, ...], F32], npt.NDArray[Any]]

_BIAS_SPREAD: Mapping[str, float] = {"q_bias": 1.0, "k_bias": 20.0, "v_bias": 0.1}
"""The spread of Qwen2.5's biases; those of k reach tens."""

_MORE_BITS = ("v", "down")
"""What llama.cpp's Q4_K_M keeps in ``q6_k``."""


def write_wide(
    path: Path,
    geometry: Geometry,
    kind: str,
    seed: int,
    tokenizer: Path | None = None,
    changed: Mapping[Place, F32] | None = None,
) -> Path:
    """Write a GGUF file of ``geometry`` whose projections are random blocks of ``kind``.

    Args:
        path: the file.
        geometry: its sizes.
        kind: ``q4_k`` (with ``q6_k`` where Q4_K_M has it), ``q8_0``, ``f16`` or ``f32``.
        seed: draws the weights, each tensor by itself.
        tokenizer: a directory whose tokenizer it shall have.
        changed: tensors that replace drawn ones, written as f32.

    """
    import gguf

    writer = gguf.GGUFWriter(path, family_of(geometry).gguf_architectures[0])
    add_metadata(writer, geometry, tokenizer)
    replaced = changed or {}
    places = places_of(geometry)
    for place in places:
        shape, held = _shape(geometry, place[0]), "f32" if place in replaced else _kind(place[0], kind)
        _announce(writer, _name(geometry, place), shape, held)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        step()
    for place in places:
        own = replaced.get(place)
        writer.write_tensor_data(drawn(geometry, place, kind, seed) if own is None else own)
    writer.close()
    return path


def _name(geometry: Geometry, place: Place) -> str:
    role, layer = place
    return family_of(geometry).gguf_weights[role].format(n=layer)


def _shape(geometry: Geometry, role: str) -> tuple[int, ...]:
    dims = geometry.dims(1)
    return tuple(dims.get(axis, geometry.head_dim) for axis in ROLE_AXES[role])


def _kind(role: str, kind: str) -> str:
    """Return the format of the tensor in ``role``: what is no projection is f32, as llama.cpp writes it."""
    if role in ONCE or len(ROLE_AXES[role]) == 1:
        return "f32"
    return "q6_k" if kind == "q4_k" and role in _MORE_BITS else kind


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf

    known = gguf.GGMLQuantizationType[kind.upper()]
    block, size = gguf.GGML_QUANT_SIZES[known]
    width = shape[-1] // block * size
    held = {"f32": np.float32, "f16": np.float16}.get(kind, np.uint8)
    listed = shape if held is not np.uint8 else (*shape[:-1], width)
    writer.add_tensor_info(
        name, listed, np.dtype(held), int(np.prod(shape[:-1], dtype=np.int64)) * width, known
    )


def drawn(geometry: Geometry, place: Place, kind: str, seed: int) -> npt.NDArray[Any]:
    """Return one tensor of :func:`write_wide`, as bytes of blocks or plain numbers."""
    role, layer = place
    shape = _shape(geometry, role)
    rng = np.random.default_rng((seed, zlib.crc32(role.encode()), 0 if layer is None else layer + 1))
    if len(shape) == 1:
        return _vector(rng, role, shape)
    # One channel in 64 of what feeds the residual stream is massive: a row of down, a column of embed.
    spread = np.full(shape[0], 1.0 if role == "embed" else shape[1] ** -0.5, np.float32)
    if role == "down":
        spread[_massive(rng, shape[0])] *= MASSIVE
    values = DRAWN[_kind(role, kind)](rng, shape, spread)
    if role == "embed":
        values[:, _massive(rng, shape[1])] *= MASSIVE
    return values


def _vector(rng: np.random.Generator, role: str, shape: tuple[int, ...]) -> F32:
    centre, spread = (0.0, _BIAS_SPREAD.get(role, 1.0)) if role.endswith("_bias") else (1.0, 0.3)
    return rng.normal(centre, spread, shape).astype(np.float32)


def _massive(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    return rng.integers(count, size=max(1, count // 64))


def _plain(rng: np.random.Generator, shape: tuple[int, ...], spread: F32) -> F32:
    return rng.standard_normal(shape, np.float32) * spread[:, None]


def _half(rng: np.random.Generator, shape: tuple[int, ...], spread: F32) -> npt.NDArray[np.float16]:
    values = np.empty(shape, np.float16)
    step = max(1, (1 << 22) // shape[1])
    for start in range(0, shape[0], step):  # f32 numbers of some rows at a time
        part = slice(start, min(start + step, shape[0]))
        values[part] = _plain(rng, values[part].shape, spread[part])
    return values


def _q8_0(rng: np.random.Generator, shape: tuple[int, ...], spread: F32) -> Bytes:
    """A block of 32 is an f16 scale and 32 signed bytes, of root mean square 73.5 (``ggml-common.h``)."""
    blocks = _random_blocks(rng, shape, 32, 34)
    np.maximum(blocks[..., 2:].view(np.int8), -127, out=blocks[..., 2:].view(np.int8))
    _put_f16(blocks, 0, _scales(rng, blocks, spread / 73.5))
    return blocks.reshape(shape[0], -1)


def _q4_k(rng: np.random.Generator, shape: tuple[int, ...], spread: F32) -> Bytes:
    """A block of 256 is f16 d and dmin, 12 bytes of 6-bit scales and minima, 128 of 4-bit integers q.

    A value is d * scale * q - dmin * minimum (``ggml-common.h``): with dmin = 7.5 d its mean is 0, and with
    all bits random its root mean square is 258 d.
    """
    blocks = _random_blocks(rng, shape, 256, 144)
    scale = _scales(rng, blocks, spread / 258)
    _put_f16(blocks, 0, scale)
    _put_f16(blocks, 2, 7.5 * scale)
    return blocks.reshape(shape[0], -1)


def _q6_k(rng: np.random.Generator, shape: tuple[int, ...], spread: F32) -> Bytes:
    """A block of 256 is 192 bytes of 6-bit integers, 16 signed scales, and f16 d (``ggml-common.h``)."""
    blocks = _random_blocks(rng, shape, 256, 210)
    _put_f16(blocks, 208, _scales(rng, blocks, spread / (73.9 * 18.5)))
    return blocks.reshape(shape[0], -1)


def _random_blocks(rng: np.random.Generator, shape: tuple[int, ...], values: int, size: int) -> Bytes:
    blocks = (shape[0], shape[1] // values, size)
    return np.frombuffer(bytearray(rng.bytes(int(np.prod(blocks)))), np.uint8).reshape(blocks)


def _scales(rng: np.random.Generator, blocks: Bytes, spread: npt.NDArray[Any]) -> F32:
    """Return a scale for each block, of root mean square ``spread``."""
    drawn = rng.uniform(0.5, 1.5, blocks.shape[:2]) / np.sqrt(13 / 12)
    scales: F32 = (spread[:, None] * drawn).astype(np.float32)
    return scales


def _put_f16(blocks: Bytes, at: int, values: F32) -> None:
    blocks[..., at : at + 2] = values.astype(np.float16)[..., None].view(np.uint8)


DRAWN: Mapping[str, Draw] = {"f32": _plain, "f16": _half, "q8_0": _q8_0, "q4_k": _q4_k, "q6_k": _q6_k}
"""Number format -> draws a tensor [rows, columns] in it, each row with its own spread."""
