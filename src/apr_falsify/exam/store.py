"""The models of an exam: made where one is first requested, shared by all of its processes."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apr_falsify.exam.checkpoints import random_weights, tensors_of, weights_of, write_gguf, write_hf
from apr_falsify.exam.material import BLUEPRINTS, Material
from apr_falsify.exam.quantised import SCHEMES, write_quantised
from apr_falsify.exam.seeding.parts import Parts
from apr_falsify.exam.texts import PASSAGE, embedding_rows
from apr_falsify.exam.wide import drawn, write_wide
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.shape import Geometry

Encode = Callable[[Model, str], tuple[int, ...]]


class Store:
    """Makes models where they are first requested.

    Args:
        directory: where they are written, once for all processes of an exam.
        tiny: the checkpoint that the package carries.
        extra: name -> path of models that exist elsewhere.
        own: where this process alone may write; ``directory`` where it is the only one.
        encode: gives the ids of a text by a model's tokenizer; who plans no runs needs none.

    """

    def __init__(
        self,
        directory: Path,
        tiny: Path,
        extra: Mapping[str, Path] | None = None,
        *,
        own: Path | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.directory, self._own, self._encode = directory, own or directory, encode
        self._natural: dict[Path, tuple[int, ...]] = {}
        self._paths = {"tiny-qwen2": tiny, **(extra or {})}
        self._tokenizer = tiny
        self._models: dict[Material, Model] = {}

    def model(self, material: Material) -> Model:
        """Return the model of ``material``."""
        if material not in self._models:
            self._models[material] = open_model(self._made(material))
        return self._models[material]

    def geometry(self, material: Material) -> Geometry:
        """Return its geometry; of a wide model without making it."""
        if material.wide:
            return geometry_of_config(BLUEPRINTS[material.name].config)
        return self.model(material).geometry

    def natural(self, name: str) -> tuple[int, ...]:
        """Return the ids of a natural text, of the tokenizer of the model called ``name``."""
        path = self._paths.get(name, self._tokenizer)
        if path not in self._natural:
            assert self._encode is not None
            self._natural[path] = self._encode(open_model(path), PASSAGE.read_text(encoding="utf-8"))
        return self._natural[path]

    def config(self, material: Material) -> dict[str, Any]:
        """Return the config.json of ``material``, to be changed."""
        if material.wide:
            return copy.deepcopy(dict(BLUEPRINTS[material.name].config))
        text = (self.model(material).path / "config.json").read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
        return config

    def _made(self, material: Material) -> Path:
        if material.name in self._paths and not (material.kind or material.rows):
            return self._paths[material.name]
        return _made_once(self.directory / material.file_name, lambda path: self._write(path, material))

    def _write(self, path: Path, material: Material) -> None:
        if material.wide:
            self._write_wide(path, material, self.config(material), {})
            return
        if not (material.kind or material.rows):
            config = BLUEPRINTS[material.name].config
            weights = random_weights(geometry_of_config(config), 1000 + material.seed)
            write_hf(path, config, weights, self._tokenizer)
            return
        sound = self.model(Material(name=material.name, seed=material.seed))
        weights = weights_of(sound)
        if material.rows:
            weights["embed", None] = embedding_rows(material.rows, weights["embed", None])
        if material.scheme:
            self.write_scheme(path, material)
        elif material.kind:
            write_gguf(path, sound.geometry, weights, material.kind, self._tokenizer)
        else:
            write_hf(path, self.config(Material(name=material.name, seed=material.seed)), weights, sound.path)

    def write_scheme(
        self, path: Path, material: Material, edit: Callable[[Parts], None] | None = None
    ) -> Path:
        """Write a model with quantised weights to ``path``; ``edit`` changes what its files hold."""
        sound = self.model(material.plain)
        return write_quantised(
            path,
            SCHEMES[material.kind],
            self.config(material.plain),
            tensors_of(sound),
            sound.weights.names,
            edit,
        )

    @property
    def spoiled_path(self) -> Path:
        """Where this process alone writes a model that it removes."""
        return self._own / "spoiled"

    def _write_wide(
        self, path: Path, material: Material, config: Mapping[str, Any], weights: Mapping[Any, Any]
    ) -> Path:
        geometry, place = geometry_of_config(config), ("embed", None)
        changed = dict(weights)
        if material.rows and place not in changed:
            changed[place] = embedding_rows(
                material.rows, drawn(geometry, place, material.kind, material.seed)
            )
        return write_wide(path, geometry, material.kind, material.seed, self._tokenizer, changed)

    def spoiled(self, material: Material, config: Mapping[str, Any], weights: Mapping[Any, Any]) -> Path:
        """Write ``material`` once more with another config and other tensors; the caller removes it."""
        path = self._own / ("spoiled.gguf" if material.wide else "spoiled")
        remove(path)
        if material.wide:
            return self._write_wide(path, material, config, weights)
        sound = self.model(material)
        return write_hf(path, config, {**weights_of(sound), **weights}, self._tokenizer)

    def drop_wide(self, kept: Material | None = None) -> None:
        """Release every wide model but ``kept``."""
        for material in [each for each in self._models if each.wide and each != kept]:
            del self._models[material]


def _made_once(path: Path, write: Callable[[Path], object]) -> Path:
    """Return ``path``, written beside its place and moved there whole; another process may be as fast."""
    if path.exists():
        return path
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    write(partial)
    try:
        os.rename(partial, path)
    except OSError:
        if not path.exists():
            raise
        remove(partial)
    return path


def remove(path: Path) -> None:
    """Remove a checkpoint, a file or a directory, where it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
