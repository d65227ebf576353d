"""Named weights of a model, read on demand: safetensors and GGUF, one view of both.

A weight is asked for by role (``q``, ``down``, ``final_norm`` ... of ``names.py``) and layer and is always
given as the forward pass uses it: [out, in], rotary pairs half-split, q apart from k and v, a norm's weight
as it is multiplied with, whatever the file holds. Expert e's weights are in the roles ``expert_up.e`` ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.arithmetic import Format
from apr_falsify.errors import GeometryError, ModelError
from apr_falsify.geometry import Geometry, geometry_of_gguf, geometry_of_hf_dir
from apr_falsify.gguf_file import GgufFile, GgufTensorInfo
from apr_falsify.reading import mapping, read_json, text
from apr_falsify.tensors import (
    SAFETENSORS_TYPES,
    DeinterleavedTensor,
    FloatArray,
    OffsetTensor,
    PlainTensor,
    QuantisedTensor,
    RoundedTensor,
    RowsOfTensor,
    Tensor,
    UnreadableTensor,
    transposed,
)

__all__ = [
    "ROLE_AXES",
    "DeinterleavedTensor",
    "FloatArray",
    "Model",
    "PlainTensor",
    "QuantisedTensor",
    "Tensor",
    "UnreadableTensor",
    "Weights",
    "open_model",
    "safetensors_files",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model's weights by role.

    Attributes:
        geometry: the model's geometry.
        names: role -> template of the tensor's name in this file.
        tensors: name -> tensor.
        interleaved: whether q and k are stored as interleaved rotary pairs.
        where: the file or directory, for messages.
        of_checkpoint: whether the tensors are as HuggingFace checkpoints have them, where a family's own
            differ from the use (transposed, norms less an offset); GGUF stores them as they are used.
        held_as: the number format that a runtime casts them to when it loads them, ``None`` for their own.

    """

    geometry: Geometry
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    interleaved: bool
    where: Path
    of_checkpoint: bool = True
    held_as: Format | None = None

    def find(self, role: str, layer: int | None = None) -> Tensor | None:
        """Return the tensor in ``role``, ``None`` where the file has none (a tied head is the embedding)."""
        if role.partition(".")[0] not in self.names:
            return None  # the family has no such thing
        if role == "lm_head" and self.geometry.tied:
            role = "embed"
        tensor = self.tensors.get(self._name(role, layer))
        return None if tensor is None else self._as_used(tensor, role.partition(".")[0])

    def _name(self, role: str, layer: int | None) -> str:
        kind, _, expert = role.partition(".")
        return self.names.get(kind, role).format(n=layer, e=expert)

    def _as_used(self, tensor: Tensor, role: str) -> Tensor:
        row = self.geometry.row
        if self.of_checkpoint and role in row.transposed:
            tensor = transposed(tensor)
        if self.held_as is not None:
            tensor = RoundedTensor(base=tensor, to=self.held_as)
        if self.of_checkpoint and row.norm_offset and role.endswith("norm"):
            tensor = OffsetTensor(base=tensor, offset=row.norm_offset)
        for group in row.fused:
            if role in group:
                heights = {each: self._shape(each)[0] for each in group}
                if tensor.shape[:1] != (sum(heights.values()),):
                    return tensor  # whole, so that its shape is refused by name
                start = sum(heights[each] for each in group[: group.index(role)])
                tensor = RowsOfTensor(base=tensor, start=start, count=heights[role])
        if self.interleaved and role in ("q", "k", "q_bias", "k_bias"):
            return DeinterleavedTensor(base=tensor, head_dim=self.geometry.head_dim)
        return tensor

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """Return the tensor in ``role``.

        Raises:
            ModelError: the file has no such tensor, or of another shape than the geometry's.

        """
        tensor = self.find(role, layer)
        if tensor is None:
            raise ModelError(
                f"the tensor {self._name(role, layer)} is missing",
                where=self.where,
                remedy="download the model again; it is incomplete",
            )
        expected = self._shape(role)
        if tensor.shape != expected:
            raise ModelError(
                f"tensor {tensor.name} has the shape {list(tensor.shape)}",
                where=self.where,
                expected=f"{list(expected)}, by the model's own geometry",
            )
        return tensor

    def vector(self, role: str, layer: int | None = None) -> FloatArray:
        """Return the one-dimensional tensor in ``role``, whole."""
        tensor = self.tensor(role, layer)
        return tensor.rows(0, tensor.shape[0])

    def _shape(self, role: str) -> tuple[int, ...]:
        dims = self.geometry.dims(tokens=1)
        return tuple(dims.get(axis, self.geometry.head_dim) for axis in ROLE_AXES[role.partition(".")[0]])


ROLE_AXES: Mapping[str, tuple[str, ...]] = {
    "embed": ("vocab", "hidden"),
    "positions": ("positions", "hidden"),
    "attn_norm": ("hidden",),
    "attn_norm_bias": ("hidden",),
    "q": ("q", "hidden"),
    "k": ("kv", "hidden"),
    "v": ("kv", "hidden"),
    "q_bias": ("q",),
    "k_bias": ("kv",),
    "v_bias": ("kv",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "o": ("hidden", "q"),
    "o_bias": ("hidden",),
    "attn_post_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "ffn_norm_bias": ("hidden",),
    "gate": ("ffn", "hidden"),
    "gate_bias": ("ffn",),
    "up": ("ffn", "hidden"),
    "up_bias": ("ffn",),
    "down": ("hidden", "ffn"),
    "down_bias": ("hidden",),
    "ffn_post_norm": ("hidden",),
    "router": ("experts", "hidden"),
    "expert_gate": ("expert_ffn", "hidden"),
    "expert_up": ("expert_ffn", "hidden"),
    "expert_down": ("hidden", "expert_ffn"),
    "final_norm": ("hidden",),
    "final_norm_bias": ("hidden",),
    "lm_head": ("vocab", "hidden"),
}
"""The shape of each role's tensor, in the axis words of ``stages.py``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on disk, opened but not loaded.

    Attributes:
        path: the directory or the .gguf file.
        format: ``safetensors`` or ``gguf``.
        geometry: its geometry.
        weights: its weights, memory-mapped.
        files: the files that hold the weights, for hashing.

    """

    path: Path
    format: str
    geometry: Geometry
    weights: Weights
    files: tuple[Path, ...]


def open_model(path: Path) -> Model:
    """Open the model at ``path``: a HuggingFace directory with safetensors, or a .gguf file.

    Raises:
        ModelError: nothing usable there; pickled weights are refused.
        UnknownFamilyError: a family that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        if path.is_dir():
            return _open_hf_dir(path)
        found = path.exists()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=error.filename or path) from error
    if not found:
        raise ModelError(
            "no such file or directory", where=path, expected="a HuggingFace model directory or a .gguf file"
        )
    return _open_gguf(path)


def _open_hf_dir(directory: Path) -> Model:
    geometry = geometry_of_hf_dir(directory)
    files = safetensors_files(directory)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in _read_safetensors(file):
            if tensor.name in tensors:
                raise ModelError(f"tensor {tensor.name} is there twice", where=file)
            tensors[tensor.name] = tensor
    weights = Weights(
        geometry=geometry,
        names=_names_in(tensors, geometry.row.weights),
        tensors=tensors,
        interleaved=False,
        where=directory,
    )
    return Model(path=directory, format="safetensors", geometry=geometry, weights=weights, files=files)


def _names_in(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``names`` as this checkpoint has them: one of the base model alone leaves its prefix out."""
    prefix, _, bare = names["embed"].partition(".")
    if names["embed"] in tensors or bare not in tensors:
        return names
    return {role: name.removeprefix(f"{prefix}.") for role, name in names.items()}


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


def _read_safetensors(path: Path) -> list[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the whole header (offsets, sizes, types); the map below then trusts it.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"not a whole safetensors file: {error}", where=path, remedy="download the file again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    if path.stat().st_size == 8 + length:
        return []
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    return [_plain(name, entry, data) for name, entry in header.items() if name != "__metadata__"]


def _plain(name: str, entry: Mapping[str, Any], data: npt.NDArray[np.uint8]) -> Tensor:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in SAFETENSORS_TYPES:
        return UnreadableTensor(name=name, type=entry["dtype"], shape=shape)
    kind, dtype = SAFETENSORS_TYPES[entry["dtype"]]
    start, stop = entry["data_offsets"]
    return PlainTensor(name=name, type=kind, data=data[start:stop].view(dtype).reshape(shape))


_GGUF_PLAIN: Mapping[str, str] = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def _open_gguf(path: Path) -> Model:
    file = GgufFile(path)
    tensors: dict[str, Tensor] = {info.name: _gguf_tensor(file, info) for info in file.tensors.values()}
    shapes = {name: info.shape for name, info in file.tensors.items()}
    geometry = geometry_of_gguf(file.metadata, shapes, _rope_divisors(tensors), path)
    row = geometry.row
    weights = Weights(
        geometry=geometry,
        names=row.gguf_weights,
        tensors=tensors,
        interleaved=row.gguf_interleaved,
        where=path,
        of_checkpoint=False,
    )
    return Model(path=path, format="gguf", geometry=geometry, weights=weights, files=(path,))


def _gguf_tensor(file: GgufFile, info: GgufTensorInfo) -> Tensor:
    raw = np.frombuffer(file.data, dtype=np.uint8, count=info.nbytes, offset=info.offset)
    if info.type in _GGUF_PLAIN:
        return PlainTensor(
            name=info.name, type=info.type, data=raw.view(_GGUF_PLAIN[info.type]).reshape(info.shape)
        )
    return QuantisedTensor(info=info, data=raw.reshape(*info.shape[:-1], info.row_bytes))


def _rope_divisors(tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
    tensor = tensors.get("rope_freqs.weight")
    if tensor is None:
        return ()
    if len(tensor.shape) != 1:
        raise GeometryError(f"rope_freqs.weight has the shape {list(tensor.shape)}", expected="one axis")
    return tuple(float(value) for value in tensor.rows(0, tensor.shape[0]))
