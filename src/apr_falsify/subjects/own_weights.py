"""The weights that a recorded run multiplied with, where its mapping file names them.

    weights: port.safetensors
    # or, where the port has names of its own:
    weights:
      from: port.npz
      names:
        model.layers.{layer}.self_attn.q_proj.weight: "L{layer}.wq"
        lm_head: head

A key of ``names`` is a weight's name in the model's HuggingFace checkpoint, or its role (``model/names.py``).
All arrays lie as that checkpoint has them. What the file does not hold is taken from the oracle, and that is
told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from apr_falsify.errors import ModelError, TraceError, nearest
from apr_falsify.formats.safetensors import read_safetensors
from apr_falsify.formats.tensors import FloatArray, PlainTensor, Tensor
from apr_falsify.formats.weights import Model, Weights, open_model
from apr_falsify.model.families import family_of, roles_at
from apr_falsify.model.shape import Geometry
from apr_falsify.reading import mapping, text
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.foreign import ForeignArray, Values

_SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")
_FLOATS = ("f16", "f32", "f64", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnWeights:
    """What a mapping file says of the run's own weights.

    Attributes:
        path: the file or folder, relative to the mapping file's folder.
        names: name or role of a weight -> its name there, ``{layer}`` and ``{expert}`` for numbers.

    """

    path: str
    names: Mapping[str, str]


def own_weights(value: object, name: str) -> OwnWeights:
    """Read the key ``weights`` of a mapping file.

    Raises:
        ValueError: it is neither a path nor a path with names.

    """
    if isinstance(value, str):
        return OwnWeights(path=value, names={})
    said = mapping(value, name)
    if unknown := [key for key in said if key not in ("from", "names")]:
        raise ValueError(f"unknown key {unknown[0]!r} in {name}: from and names are known")
    names = mapping(said.get("names", {}), f"{name}.names")
    table = {text(key, f"a key of {name}.names"): text(names[key], f"{name}.names.{key}") for key in names}
    return OwnWeights(path=text(said.get("from"), f"{name}.from"), names=table)


def open_own(
    said: OwnWeights, where: Path, geometry: Geometry, oracle: Model | None
) -> tuple[Model, tuple[str, ...]]:
    """Return the run's own weights as a model, and what they leave unchecked.

    Args:
        said: what the mapping file says.
        where: the mapping file.
        geometry: the geometry of the run.
        oracle: the other side's model, which has what the file lacks.

    Raises:
        TraceError: they are of another size, or the table names what is not there.
        ModelError: the file cannot be read.

    """
    path = where.parent / said.path
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"weights: {path.name:.80} cannot be read: {what}", where=where) from error
    if folder or path.suffix in (".gguf", ".apr"):
        model = open_model(path)
        _check_sizes(model.geometry, geometry, where, path)
        if said.names:
            raise TraceError("weights.names is for arrays; a model has the names of its format", where=where)
        return model, ()
    arrays = _arrays(path, where)
    tensors = {**arrays, **_renamed(said, arrays, geometry, where)}
    weights = Weights(
        geometry=geometry,
        names=family_of(geometry).weights,
        tensors=tensors,
        interleaved=family_of(geometry).interleaved,
        where=path,
    )
    weights, notes = _completed(weights, oracle, where)
    return Model(path=path, format="arrays", geometry=geometry, weights=weights, files=(path,)), notes


def _check_sizes(found: Geometry, run: Geometry, where: Path, path: Path) -> None:
    for size in _SIZES:
        if getattr(found, size) != getattr(run, size):
            raise TraceError(
                f"weights: {path.name} has {size} {getattr(found, size)}",
                where=where,
                expected=f"{getattr(run, size)}, as the model that was run",
            )


def _arrays(path: Path, where: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TraceError(
            f"weights: no file or folder {path.name}",
            where=where,
            expected=".safetensors, .npz, .gguf or a HuggingFace folder beside the mapping file",
        )
    if path.suffix == ".safetensors":
        return {tensor.name: tensor for tensor in read_safetensors(path)}
    return {name: _LoadedTensor(array=array, path=path) for name, array in read_dump(path).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedTensor:
    """An array of an archive: it is read whole when it is needed, and few are held at a time."""

    array: ForeignArray
    path: Path

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.array.name

    @property
    def type(self) -> str:
        """Its number format."""
        return self.array.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the rows.

        Raises:
            ModelError: it holds no floating-point numbers.

        """
        if self.type not in _FLOATS:
            raise ModelError(
                f"array {self.name} holds {self.type}", where=self.path, expected=", ".join(_FLOATS)
            )
        values = _loaded(self.array.load).reshape(self.shape)
        return PlainTensor(name=self.name, type=self.type, data=values).rows(start, stop)


@lru_cache(maxsize=4)
def _loaded(load: Callable[[], Values]) -> Values:
    return np.asarray(load())


def _renamed(
    said: OwnWeights, arrays: Mapping[str, Tensor], geometry: Geometry, where: Path
) -> dict[str, Tensor]:
    """Return the arrays of the table by the names that the checkpoint has."""
    names = family_of(geometry).weights
    templates = {*names.values()}
    found: dict[str, Tensor] = {}
    for key, pattern in said.names.items():
        template = names.get(key, key.replace("{layer}", "{n}").replace("{expert}", "{e}"))
        if template not in templates:
            known = [*names, *(one.replace("{n}", "{layer}") for one in templates)]
            raise TraceError(
                f"weights.names: {key!r} is no weight of the model",
                where=where,
                expected=", ".join(names),
                remedy=nearest(key, known),
            )
        for layer, expert in _places(template, geometry):
            array = pattern.replace("{layer}", str(layer)).replace("{expert}", str(expert))
            if array not in arrays:
                raise TraceError(
                    f"weights.names.{key}: there is no array {array!r}",
                    where=where,
                    expected=f"one of the {len(arrays)} arrays of {said.path}",
                    remedy=nearest(array, arrays),
                )
            found[template.format(n=layer, e=expert)] = arrays[array]
    return found


def _places(template: str, geometry: Geometry) -> Iterator[tuple[int, int]]:
    layers = range(geometry.layers) if "{n}" in template else range(1)
    experts = range(geometry.experts) if "{e}" in template else range(1)
    for layer in layers:
        yield from ((layer, expert) for expert in experts)


def _completed(weights: Weights, oracle: Model | None, where: Path) -> tuple[Weights, tuple[str, ...]]:
    """Return the weights with the oracle's where the file has none, and what is told of those."""
    geometry = weights.geometry
    layers: list[int | None] = [None, *range(geometry.layers)]
    sites = [(role, layer) for layer in layers for role in roles_at(geometry, layer)]
    missing = [(role, layer) for role, layer in sites if weights.find(role, layer) is None]
    if len(missing) == len(sites):
        raise TraceError(
            f"weights: no array of {weights.where.name} has the name of a weight",
            where=where,
            expected=next(iter(weights.names.values())),
            remedy="say in weights.names what the port calls them",
        )
    others = None if oracle is None or oracle.format != "safetensors" else oracle.weights
    if not missing or others is None:
        return weights, ()
    parts = [(*role.partition("."), layer) for role, layer in missing]
    wanted = {weights.names[kind].format(n=layer, e=expert) for kind, _, expert, layer in parts}
    borrowed = {name: tensor for name, tensor in others.tensors.items() if name in wanted}
    roles = ", ".join(dict.fromkeys(role for role, _ in missing))
    note = f"the subject's own {roles}: {weights.where.name} does not hold them; the oracle's were used"
    return replace(weights, tensors={**borrowed, **weights.tensors}), (note,)
