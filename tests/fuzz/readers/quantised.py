"""Quantised weights: HuggingFace folders of every scheme, and a recording's own in its mapping file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from safetensors.numpy import save

from apr_falsify.exam.quantised import SCHEMES, write_quantised
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import family_of
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from tests.fuzz import blobs, folders, lines, maps, trees
from tests.fuzz.folders import Files, Folder
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.readers.models import header_of, used, with_header
from tests.unit.helpers import CONFIG, TINY, random_tensors, small_geometry

KNOBS: Mapping[str, Any] = {
    "num_hidden_layers": 1,
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
Arrays = dict[str, npt.NDArray[Any]]
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def checkpoint(folder: Path) -> Maker:
    """A quantised HuggingFace folder: its bytes, its header, its config, its files."""
    sound = [*_schemes(), _quanto(), _torchao()]
    seeds = [maps.safetensors(files[_WEIGHTS]) for files in sound]
    headers = [header_of(files[_WEIGHTS]) for files in sound]
    configs = [trees.tree(json.loads(files[_CONFIG])) for files in sound]
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        at, way = chance.randrange(len(sound)), chance.random()
        files: Files
        if way < 0.25:
            data, said = blobs.changed(seeds[at], chance)
            files = {**sound[at], _WEIGHTS: data}
        elif way < 0.6:
            data, said = with_header(sound[at][_WEIGHTS], headers[at], chance)
            files = {**sound[at], _WEIGHTS: data}
        elif way < 0.9:
            data, said = trees.json_bytes(configs[at], chance)
            files = {**sound[at], _CONFIG: data}
        elif way < 0.95:
            files, said = {**sound[at], _CONFIG: chance.choice(sound)[_CONFIG]}, ("another's config",)
        else:
            files, said = folders.changed(sound[at], chance)
        size = shown.show(files)
        return Input(read=lambda: used(open_model(folder)), size=size, said=said)

    return make


def _plain() -> Arrays:
    return dict(random_tensors(small_geometry(**KNOBS)))


def _schemes() -> list[dict[str, bytes]]:
    names = family_of(small_geometry(**KNOBS)).weights
    made = []
    with tempfile.TemporaryDirectory() as place:
        for number, scheme in enumerate(SCHEMES.values()):
            path = Path(place) / str(number)
            write_quantised(path, scheme, {**CONFIG, **KNOBS}, _plain(), names)
            made.append({name: (path / name).read_bytes() for name in (_CONFIG, _WEIGHTS)})
    return made


def _folder(method: str, parts: Mapping[str, npt.NDArray[Any]], said: Mapping[str, str]) -> dict[str, bytes]:
    config = {**CONFIG, **KNOBS, "quantization_config": {"quant_method": method}}
    return {_CONFIG: json.dumps(config).encode(), _WEIGHTS: save(dict(parts), metadata=dict(said))}


def _is_product(name: str) -> bool:
    return name.endswith("_proj.weight")


def _quanto() -> dict[str, bytes]:
    """Return a checkpoint whose matrices are of 4 bits, the queries' of 8."""
    rng, held = np.random.default_rng(3), _plain()
    for name in [name for name in held if _is_product(name)]:
        out, width = held.pop(name).shape
        if "q_proj" in name:
            held[f"{name}._data"] = rng.integers(-127, 128, (out, width)).astype(np.int8)
            held[f"{name}._scale"] = np.full((out, 1), 0.01, np.float32)
            continue
        rows = out * width // 32
        held[f"{name}._data._data"] = rng.integers(0, 256, (rows // 2, 32)).astype(np.uint8)
        held[f"{name}._scale"] = np.full((rows, 1), 0.1, np.float32)
        held[f"{name}._shift"] = np.full((rows, 1), 0.8, np.float32)
    return _folder("quanto", held, {})


def _torchao() -> dict[str, bytes]:
    """Return a checkpoint whose matrices are of 8 bits, the feed-forward's of 4."""
    rng, held = np.random.default_rng(4), _plain()
    said: dict[str, str] = {}
    for name in [name for name in held if _is_product(name)]:
        out, width = held.pop(name).shape
        four = "mlp" in name
        stem, parts = name.removesuffix(".weight"), ["qdata", "scale"]
        shape = (out, width // 2) if four else (out, width)
        held[f"{stem}._weight_qdata"] = rng.integers(-128, 128, shape).astype(np.int8)
        scales = (width // 32, out) if four else (out, 1)
        held[f"{stem}._weight_scale"] = np.full(scales, 0.01, np.float32)
        if four:
            held[f"{stem}._weight_zero_point"], parts = np.zeros(scales, np.float32), [*parts, "zero_point"]
        attributes = {"block_size": [1, 32 if four else width]}
        kind = "Int4Tensor" if four else "Int8Tensor"
        said[name] = json.dumps({"_type": kind, "_data": attributes, "_tensor_data_names": parts})
    return _folder("torchao", held, {**said, "tensor_names": json.dumps(list(said))})


def _own_name(name: str, layer: str) -> str:
    return name.replace("model.layers.", "L").replace("{n}", layer)


_TOKENS = (1, 3, 2)
_MAPPING = "MAPPING.yaml"


def own_weights(folder: Path) -> Maker:
    """A recording with its own weights: what its mapping file says of them, and their file."""
    model = open_model(TINY)
    templates = {role: model.weights.names[role] for role in ("k", "attn_norm", "ffn_norm", "final_norm")}
    names = {name.replace("{n}", "{layer}"): _own_name(name, "{layer}") for name in templates.values()}
    weights = {
        _own_name(name, str(layer)): np.array(model.weights.tensors[name.format(n=layer)].rows(0, 1 << 20))
        for name in templates.values()
        for layer in range(model.geometry.layers)
    }
    said = {
        "schema": "apr-falsify/mapping/v1",
        "runtime": "other",
        "dtype": "f32",
        "tokens": list(_TOKENS),
        "stages": {"embedding": {"from": "emb"}},
        "weights": {"from": "own.safetensors", "names": names},
    }
    embedding = model.weights.tensor("embed")
    rows = np.concatenate([embedding.rows(token, token + 1) for token in _TOKENS])
    recording = save({"emb": rows.astype(np.float32)})
    sound = {_MAPPING: yaml.safe_dump(said, sort_keys=False).encode(), "own.safetensors": save(weights)}
    sound["x.safetensors"] = recording
    value, text = trees.tree(said["weights"]), sound[_MAPPING].decode()
    seed, header = maps.safetensors(sound["own.safetensors"]), header_of(sound["own.safetensors"])
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        way = chance.random()
        files: Files
        if way < 0.35:
            data, words = trees.json_bytes(value, chance)
            other = text.partition("weights:")[0].encode() + b"weights: " + data.replace(b"\n", b" ") + b"\n"
            files = {**sound, _MAPPING: other}
        elif way < 0.5:
            data, words = lines.yaml_bytes(text, chance)
            files = {**sound, _MAPPING: data}
        elif way < 0.7:
            data, words = blobs.changed(seed, chance)
            files = {**sound, "own.safetensors": data}
        elif way < 0.9:
            data, words = with_header(sound["own.safetensors"], header, chance)
            files = {**sound, "own.safetensors": data}
        else:
            files, words = folders.changed(sound, chance)
        size = shown.show(files)
        target = Target(path=folder / "x.safetensors", model=model)

        def read() -> None:
            found = open_recorded(target)
            if found.model is not None:
                used(found.model)

        return Input(read=read, size=size, said=words)

    return make
