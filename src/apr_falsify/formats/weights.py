"""Named weights of a model, read on demand: safetensors, GGUF and .apr, one view of all.

A weight is requested by role (``q``, ``down``, ``final_norm`` ... of ``names.py``) and layer and is always
given as the forward pass uses it: [out, in], rotary pairs half-split, q apart from k and v, a norm's weight
as it is multiplied with, whatever the file holds. Expert e's weights are in the roles ``expert_up.e`` ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from apr_falsify.errors import GeometryError, ModelError
from apr_falsify.formats.apr import MAGIC as APR_MAGIC
from apr_falsify.formats.apr import AprFile, AprTensorInfo
from apr_falsify.formats.apr_geometry import apr_names, geometry_of_apr
from apr_falsify.formats.gguf import GgufFile, GgufTensorInfo
from apr_falsify.formats.latents import with_whole_latents
from apr_falsify.formats.quantised.grid import GridTensor
from apr_falsify.formats.quantised.table import dequantised
from apr_falsify.formats.safetensors import read_safetensors, safetensors_files
from apr_falsify.formats.tensors import (
    PLAIN_TYPES,
    AprBlockTensor,
    FloatArray,
    QuantisedTensor,
    Tensor,
    UnreadableTensor,
    plain_tensor,
    transposed,
)
from apr_falsify.formats.text_part import names_in
from apr_falsify.formats.views import (
    ExpertColumns,
    HalfSplit,
    ListedRows,
    Offset,
    OneExpert,
    Rounded,
    RowsByHead,
    SomeRows,
    Unsqueezed,
    ViewedTensor,
)
from apr_falsify.model.families import family_of, place_of, shape_of_role
from apr_falsify.model.families.of_users import file_of
from apr_falsify.model.geometry import ROPE_TENSORS, geometry_of_gguf, geometry_of_hf_dir, read_config
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.arithmetic import Format

ROTATED_ROLES: tuple[str, ...] = ("q", "k", "q_bias", "k_bias", "q_b", "k_rope", "k_rope_bias")
"""Roles whose rows are channels that are rotated, some or all of them."""


def half_split(geometry: Geometry, role: str = "q") -> HalfSplit:
    """Return the view of the interleaved rotary pairs of a role as half-split ones."""
    width = geometry.rope.width(geometry.head_dim)
    if role.startswith("k_rope"):  # one head's rotated channels alone
        return HalfSplit(head_dim=width)
    return HalfSplit(head_dim=geometry.head_dim, width=width, begin=geometry.rotary_start(0))


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
        cast_to: the number format that a runtime casts them to when it loads them, ``None`` for their own.
        matrices_alone: whether it casts matrices only, and keeps norms and biases.
        imported_from: the weights that a runtime made these of, where it works on a copy of its own format.

    """

    geometry: Geometry
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    interleaved: bool
    where: Path
    of_checkpoint: bool = True
    cast_to: Format | None = None
    matrices_alone: bool = False
    imported_from: Weights | None = None

    def find(self, role: str, layer: int | None = None) -> Tensor | None:
        """Return the tensor in ``role``, ``None`` where the file has none (a tied head is the embedding)."""
        if role.partition(".")[0] not in self.names:
            return None  # the family has no such thing
        if role == "lm_head" and self.geometry.tied:
            role = "embed"
        tensor = self.tensors.get(self._name(role, layer))
        if tensor is None:
            return None
        kind, _, expert = role.partition(".")
        columns = family_of(self.geometry).expert_columns.get(kind) if self.of_checkpoint else None
        if expert and columns is not None and not self._is_turned(kind, tensor):
            view = ExpertColumns(expert=int(expert), first=columns[0], step=columns[1])
            tensor = ViewedTensor(base=tensor, view=view)
        elif expert and len(tensor.shape) == (2 if kind.endswith("_bias") else 3):
            tensor = ViewedTensor(base=tensor, view=OneExpert(expert=int(expert)))
        return self._as_used(tensor, kind)

    def _is_turned(self, role: str, tensor: Tensor) -> bool:
        """Whether a tensor of all experts is [experts, out, in] where its family's usually is not."""
        width = self._shape(role)[-1]
        return len(tensor.shape) == 3 and tensor.shape[1] != width == tensor.shape[2]

    def _name(self, role: str, layer: int | None) -> str:
        kind, _, expert = role.partition(".")
        return self.names.get(kind, role).format(n=layer, e=expert)

    def _as_used(self, tensor: Tensor, role: str) -> Tensor:
        row = family_of(self.geometry)
        if not self.of_checkpoint:
            tensor = _with_axes_of_one(tensor, self._shape(role))
        if self.of_checkpoint and role in row.transposed and not isinstance(tensor, GridTensor):
            tensor = transposed(tensor)
        kept = role in row.kept_in_f32 or (self.matrices_alone and len(tensor.shape) == 1)
        if self.cast_to is not None and not kept:
            tensor = ViewedTensor(base=tensor, view=Rounded(to=self.cast_to))
        if self.of_checkpoint and row.norm_offset and role.endswith("norm") and role not in row.plain_norms:
            tensor = ViewedTensor(base=tensor, view=Offset(by=row.norm_offset))
            if row.offset_rounded and self.cast_to is not None:
                tensor = ViewedTensor(base=tensor, view=Rounded(to=self.cast_to))
        if self.of_checkpoint and role in row.listed_rows:
            view = ListedRows(listed=row.listed_rows[role](self.geometry))
            tensor = ViewedTensor(base=tensor, view=view)
        for group in row.fused:
            # A file of another form than the checkpoint's may hold them apart.
            if role in group and len({self.names[each] for each in group}) == 1:
                heights = {each: self._shape(each)[0] for each in group}
                if tensor.shape[:1] != (sum(heights.values()),):
                    return tensor  # whole, so that its shape is refused by name
                at = group.index(role)
                start = sum(heights[each] for each in group[:at])
                rows = SomeRows(start=start, count=heights[role])
                by_head = row.fused_by_head and self.of_checkpoint
                own = RowsByHead(head_dim=self.geometry.head_dim, part=at) if by_head else rows
                tensor = ViewedTensor(base=tensor, view=own)
        return self._half_split(tensor, role)

    def _half_split(self, tensor: Tensor, role: str) -> Tensor:
        if self.interleaved and role in ROTATED_ROLES:
            return ViewedTensor(base=tensor, view=half_split(self.geometry, role))
        return tensor

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """Return the tensor in ``role``.

        Raises:
            ModelError: the file has no such tensor, or of another shape than the geometry's.

        """
        tensor = self.find(role, layer)
        if tensor is None:
            raise self._missing(role, layer)
        expected = self._shape(role)
        if tensor.shape != expected:
            raise ModelError(
                f"tensor {tensor.name} has the shape {list(tensor.shape)}",
                where=self.where,
                expected=f"{list(expected)}, by the model's own geometry",
            )
        return tensor

    def _missing(self, role: str, layer: int | None) -> ModelError:
        name, remedy = self._name(role, layer), "download the model again; it is incomplete"
        if file_of(self.geometry.family) is not None:
            remedy = "name it in the family's weights as the checkpoint does"
        return ModelError(
            f"the tensor {name} is missing, which is the weight {role!r} by {place_of(self.geometry)}",
            where=self.where,
            remedy=remedy,
        )

    def vector(self, role: str, layer: int | None = None) -> FloatArray:
        """Return the one-dimensional tensor in ``role``, whole."""
        tensor = self.tensor(role, layer)
        return tensor.rows(0, tensor.shape[0])

    def _shape(self, role: str) -> tuple[int, ...]:
        return shape_of_role(role, self.geometry)


def _with_axes_of_one(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor with the axes of 1 that llama.cpp's conversion drops; as it is where others differ."""
    if tensor.shape == shape or tensor.shape != tuple(size for size in shape if size != 1):
        return tensor
    return ViewedTensor(base=tensor, view=Unsqueezed(to=shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on disk, opened but not loaded.

    Attributes:
        path: the directory or the file.
        format: ``safetensors``, ``gguf`` or ``apr``.
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
    """Open the model at ``path``: a HuggingFace directory with safetensors, a .gguf or an .apr file.

    Raises:
        ModelError: nothing usable there; pickled weights are refused.
        UnknownFamilyError: a family that is not in the table.
        GeometryError: a size is missing, contradictory or absurd.

    """
    try:
        if path.is_dir():
            return _open_hf_dir(path)
        if path.is_file() and (path.suffix == ".apr" or _starts_as_apr(path)):
            return _open_apr(path)
        found = path.exists()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=error.filename or path) from error
    if not found:
        raise ModelError(
            "no such file or directory",
            where=path,
            expected="a HuggingFace model directory, .gguf or .apr",
        )
    return _open_gguf(path)


def _starts_as_apr(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(APR_MAGIC)) == APR_MAGIC


def _open_hf_dir(directory: Path) -> Model:
    geometry = geometry_of_hf_dir(directory)
    files = safetensors_files(directory)
    held: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file in files:
        for tensor in read_safetensors(file):
            if tensor.name in held:
                raise ModelError(f"tensor {tensor.name} is there twice", where=file)
            held[tensor.name], places[tensor.name] = tensor, file
    names = names_in(held, family_of(geometry).weights)
    shape_of = partial(_shape_of, geometry, names)
    tensors = dequantised(read_config(directory), held, places, directory, shape_of)
    weights = Weights(
        geometry=geometry,
        names=names_in(tensors, family_of(geometry).weights),
        tensors=tensors,
        interleaved=family_of(geometry).interleaved,
        where=directory,
    )
    return Model(path=directory, format="safetensors", geometry=geometry, weights=weights, files=files)


def _shape_of(geometry: Geometry, names: Mapping[str, str], name: str) -> tuple[int, ...] | None:
    """Return the shape of the weight that a checkpoint calls ``name``, ``None`` where it is none of ours."""
    for role, template in names.items():
        pattern = re.escape(template).replace(r"\{n\}", r"\d+").replace(r"\{e\}", r"\d+")
        if re.fullmatch(pattern, name):
            return shape_of_role(role, geometry)
    return None


_APR_BLOCKS: Mapping[str, type[AprBlockTensor | QuantisedTensor]] = {
    "apr_q4": AprBlockTensor,
    "apr_q8": AprBlockTensor,
    "q4_k": QuantisedTensor,
    "q6_k": QuantisedTensor,
}


def _open_apr(path: Path) -> Model:
    """Open an .apr file; its tensors have HuggingFace's names or GGUF's, and are stored as either has them.

    An output head that is announced and has no data is tied to the embedding: ``apr import`` leaves that
    placeholder for a tied checkpoint in half precision (paiml/aprender, issues 2309 and 2441).

    Raises:
        ModelError: not a whole .apr file, or one that announces another tensor and has no data for it.

    """
    file = AprFile(path)
    held = [info for info in file.tensors.values() if info.nbytes or info.name != "lm_head.weight"]
    tensors = {info.name: _apr_tensor(file, info) for info in held}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    geometry = geometry_of_apr(file.metadata, shapes, _vector(tensors, "rope_freqs"), path)
    names = apr_names(family_of(geometry), tensors)
    of_gguf = (
        names["q"] == family_of(geometry).gguf_weights["q"] or file.metadata.get("original_format") == "gguf"
    )
    weights = Weights(
        geometry=geometry,
        names=names,
        tensors=tensors,
        interleaved=of_gguf and family_of(geometry).gguf_interleaved,
        where=path,
        of_checkpoint=False,
    )
    return Model(path=path, format="apr", geometry=geometry, weights=weights, files=(path,))


def _apr_tensor(file: AprFile, info: AprTensorInfo) -> Tensor:
    if not info.nbytes:
        raise ModelError(f"tensor {info.name} has no data", where=file.path, remedy="import it again")
    raw = np.frombuffer(file.data, dtype=np.uint8, count=info.nbytes, offset=info.offset)
    if info.type in PLAIN_TYPES:
        return plain_tensor(info.name, info.type, info.shape, raw)
    kind = _APR_BLOCKS.get(info.type)
    if kind is None:
        return UnreadableTensor(name=info.name, type=info.type, shape=info.shape)
    return kind(info=info, data=raw if kind is AprBlockTensor else raw.reshape(-1, info.row_bytes))


def _open_gguf(path: Path) -> Model:
    file = GgufFile(path)
    tensors = with_whole_latents({info.name: _gguf_tensor(file, info) for info in file.tensors.values()})
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    divisors = {name: values for name in ROPE_TENSORS if (values := _vector(tensors, name))}
    geometry = geometry_of_gguf(file.architecture_metadata(), shapes, divisors, path)
    row = family_of(geometry)
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
    if info.type in PLAIN_TYPES:
        return plain_tensor(info.name, info.type, info.shape, raw)
    return QuantisedTensor(info=info, data=raw.reshape(*info.shape[:-1], info.row_bytes))


def _vector(tensors: Mapping[str, Tensor], name: str) -> tuple[float, ...]:
    """Return the content of a tensor of one axis, empty where there is none."""
    tensor = tensors.get(f"{name}.weight")
    if tensor is None:
        return ()
    if len(tensor.shape) != 1:
        raise GeometryError(f"{name}.weight has the shape {list(tensor.shape)}", expected="one axis")
    return tuple(float(value) for value in tensor.rows(0, tensor.shape[0]))
