"""The safetensors files of a HuggingFace directory: which they are, and their tensors, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import ModelError
from apr_falsify.formats.tensors import (
    SAFETENSORS_TYPES,
    STORED_BITS,
    Tensor,
    UnreadableTensor,
    plain_tensor,
)
from apr_falsify.reading import mapping, parse_json, read_json, text


def safetensors_files(directory: Path) -> tuple[Path, ...]:
    """Return the weight files of a HuggingFace directory, by its index where it has one.

    Raises:
        ModelError: none there, one of the index missing, or only pickled weights.

    """
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.exists():
        files = tuple(directory / name for name in _indexed(index))
    elif single.exists():  # beside it, some repositories keep the same weights under other names
        files = (single,)
    else:
        files = tuple(sorted(directory.glob("*.safetensors")))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"weight files are missing: {', '.join(missing)}",
            where=directory,
            remedy="download the model again; it is incomplete",
        )
    if not files:
        raise _no_weights(directory)
    return files


def _indexed(index: Path) -> list[str]:
    try:
        weight_map = mapping(read_json(index)["weight_map"], "weight_map")
        names = sorted({text(name, "a file name") for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not a safetensors index: {error}", where=index) from error
    outside = [name for name in names if name != Path(name).name]
    if outside:
        raise ModelError(
            f"the index names {outside[0]!r}", where=index, expected="files in the directory itself"
        )
    return names


def _no_weights(directory: Path) -> ModelError:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        return ModelError(
            f"the weights are pickled ({pickled[0]}): loading them could run any code",
            where=directory,
            expected="*.safetensors",
            remedy="convert them with transformers: model.save_pretrained(DIR, safe_serialization=True)",
        )
    return ModelError(
        "no weights", where=directory, expected="*.safetensors", remedy="download the model again"
    )


def read_safetensors(path: Path) -> list[Tensor]:
    """Return the tensors of the file at ``path``, memory-mapped.

    Raises:
        ModelError: not a whole safetensors file.

    """
    try:
        header, start = read_header(path)
    except (OSError, ValueError) as error:
        raise ModelError(str(error), where=path, remedy="download the file again") from error
    if path.stat().st_size == start:
        return []
    # As a plain array, which keeps the map alive: a model of 37,000 tensors opens in two thirds of the time.
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=start))
    return [_plain(name, entry, data) for name, entry in header.items()]


def read_header(path: Path) -> tuple[dict[str, Mapping[str, Any]], int]:
    """Return what a safetensors file says of each tensor, and where their data starts.

    Raises:
        OSError: it cannot be read.
        ValueError: not a whole safetensors file, or a name is there twice.

    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError(f"its header would have {length} bytes")
            content = file.read(length).decode("utf-8")
        header = mapping(parse_json(content), "its header")
        tensors = {
            name: mapping(entry, f"what it says of {name}")  # the library takes a list for it too
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if len(tensors) * _BYTES_OF_A_TENSOR > 4 * path.stat().st_size + _SPARE:
            raise ValueError(f"it names {len(tensors)} tensors, far more than it can hold")
        # The library checks the whole header (offsets, sizes, types); what reads it here then trusts it.
        with safe_open(path, framework="numpy"):
            pass
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error
    return tensors, 8 + length


def file_metadata(path: Path) -> dict[str, str]:
    """Return what the writer of a safetensors file, read by :func:`read_header` before, says of it."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


_BYTES_OF_A_TENSOR = 1400  # that an entry takes in memory, here and in the library
_SPARE = 48 << 20


def _plain(name: str, entry: Mapping[str, Any], data: npt.NDArray[np.uint8]) -> Tensor:
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if entry["dtype"] in SAFETENSORS_TYPES:
        kind, _ = SAFETENSORS_TYPES[entry["dtype"]]
        return plain_tensor(name, kind, shape, data[start:stop])
    stored = STORED_BITS.get(entry["dtype"])
    bits = None if stored is None else data[start:stop].view(stored).reshape(shape)
    return UnreadableTensor(name=name, type=entry["dtype"], shape=shape, bits=bits)
