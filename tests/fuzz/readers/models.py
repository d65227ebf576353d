"""Model files: GGUF, .apr, safetensors (also in shards), ``config.json``."""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from apr_falsify.exam.material import BLUEPRINTS
from apr_falsify.formats.gguf import GgufFile
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of, roles_at
from apr_falsify.model.geometry import geometry_of_hf_dir
from apr_falsify.model.shape import Geometry
from tests.fuzz import blobs, folders, maps, trees
from tests.fuzz.blobs import Blob
from tests.fuzz.folders import Files, Folder
from tests.fuzz.odd import EDGES, TEXTS
from tests.fuzz.readers.inputs import Input, Maker
from tests.support import DATA
from tests.unit.gguf_models import metadata_of, random_blocks, write_gguf
from tests.unit.helpers import CONFIG, KNOBS, TINY, random_tensors, small_geometry

TINY_LLAMA = DATA / "apr-tiny-llama-hf"
_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")


def used(model: Model) -> None:
    """Read some rows of what a forward pass would read first."""
    for tensor in list(model.weights.tensors.values())[:4]:
        _rows(tensor)
    for role in roles_at(model.geometry, None)[:8]:
        _rows(model.weights.tensor(role))
    for role in roles_at(model.geometry, 0)[:20]:
        _rows(model.weights.tensor(role, 0))


def _rows(tensor: Any) -> None:
    tensor.rows(0, 2)
    tensor.rows(max(0, tensor.shape[0] - 1), tensor.shape[0])


def gguf(folder: Path) -> Maker:
    """A GGUF file: the real one now and then, mostly small ones of the gguf package's writer."""
    small = [maps.gguf(data) for data in _small_ggufs()]
    real = maps.gguf((DATA / "apr-tiny-qwen2" / "base-q4k.gguf").read_bytes())
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        seed = real if chance.random() < 0.05 else chance.choice(small)
        way = chance.random()
        if way < 0.05:
            data, said = blobs.grafted(seed, chance.choice(small), chance)
        else:
            data, said = with_value(seed, chance) if way < 0.35 else blobs.changed(seed, chance)
        size = shown.show({"x.gguf": data})

        def read() -> None:
            file = GgufFile(folder / "x.gguf")
            for name in _ARRAYS:
                file.array(name)
            used(open_model(folder / "x.gguf"))

        return Input(read=read, size=size, said=said)

    return make


_GGUF_NUMBERS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}


def with_value(seed: Blob, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Give a key of a GGUF file a sound value of any type."""
    keys = [span for span in seed.sections if "." in span.name and not span.name.startswith("info of")]
    key = chance.choice(keys)
    start = next(span.start for span in seed.numbers if span.name == f"type of {key.name}")
    kind, value = _gguf_value(chance)
    data = seed.data[:start] + struct.pack("<I", kind) + value + seed.data[key.stop :]
    return data, (f"{key.name} is of type {kind}: {value!r:.60}",)


def _gguf_value(chance: Random) -> tuple[int, bytes]:
    kind = chance.choice((*_GGUF_NUMBERS, 4, 4, 6, 6, 7, 8, 8, 9, 12))
    if kind in _GGUF_NUMBERS:
        form = _GGUF_NUMBERS[kind]
        number = chance.choice(EDGES) % (1 << 8 * struct.calcsize(form))
        return kind, number.to_bytes(struct.calcsize(form), "little")
    if kind in (6, 12):
        floats = (
            0.0,
            -0.0,
            1.0,
            -1.0,
            1e-30,
            1e30,
            1e-45,
            float("nan"),
            float("inf"),
            float("-inf"),
            10000.0,
        )
        return kind, struct.pack("<f" if kind == 6 else "<d", chance.choice(floats))
    if kind == 7:
        return kind, bytes([chance.choice((0, 1, 2, 255))])
    if kind == 8:
        text = chance.choice((*TEXTS, "llama", "qwen2", "yarn", "linear")).encode("utf-8", "surrogatepass")
        return kind, struct.pack("<Q", len(text)) + text
    inner, item = _gguf_value(chance)
    count = chance.choice((0, 1, 2, 3, 40))
    return 9, struct.pack("<IQ", inner, count) + item * count


def _small_ggufs() -> list[bytes]:
    made = []
    with tempfile.TemporaryDirectory() as place:
        for kinds in ({}, {"attn_q": "Q8_0", "ffn_up": "Q4_K"}, {"attn_v": "Q6_K", "ffn_down": "IQ4_NL"}):
            made.append(_small_gguf(Path(place) / "x.gguf", kinds).read_bytes())
    return made


def _small_gguf(path: Path, kinds: Mapping[str, str]) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 256} if kinds else {}
    geometry = small_geometry(num_hidden_layers=1, vocab_size=8, **sizes)
    named = family_of(geometry).gguf_weights
    by_name = {
        family_of(geometry).weights[role].format(n=0): name.format(n=0) for role, name in named.items()
    }
    tensors = {by_name[name]: data for name, data in random_tensors(geometry).items()}
    found = {}
    for name, data in list(tensors.items()):
        kind = next((kind for word, kind in kinds.items() if word in name), None)
        if kind is not None:
            tensors[name], found[name] = random_blocks(data.shape, kind), kind
    metadata = {
        **metadata_of(geometry),
        "tokenizer.ggml.tokens": ["a", "b", "Ġc", "é"],
        "tokenizer.ggml.token_type": [1, 1, 3, 1],
        "general.alignment": 32,
    }
    return write_gguf(path, tensors, metadata, found)


def apr(folder: Path) -> Maker:
    """An .apr file, its header's checksum most often made to fit."""
    seeds = [maps.apr((TINY_LLAMA / "model.apr").read_bytes())]
    real = maps.apr((DATA / "apr-tiny-qwen2" / "base-q4k.apr").read_bytes())
    metadata = {id(seed): trees.tree(json.loads(_metadata_of(seed))) for seed in (*seeds, real)}
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        seed = real if chance.random() < 0.05 else chance.choice(seeds)
        way = chance.random()
        if way < 0.35:
            data, said = _with_metadata(seed, metadata[id(seed)], chance)
        elif way < 0.38:
            data, said = blobs.grafted(seed, real if seed is not real else seeds[0], chance)
        else:
            data, said = blobs.changed(seed, chance)
        if chance.random() < 0.85:
            data = _with_checksum(data)
        size = shown.show({"x.apr": data})
        return Input(read=lambda: used(open_model(folder / "x.apr")), size=size, said=said)

    return make


def _with_checksum(data: bytes) -> bytes:
    if len(data) < maps.APR_HEADER.size:
        return data
    checksum = zlib.crc32(data[:40] + data[44 : maps.APR_HEADER.size])
    return data[:40] + struct.pack("<I", checksum) + data[44:]


def _metadata_of(seed: Blob) -> bytes:
    head = maps.APR_HEADER.unpack_from(seed.data)
    return seed.data[head[5] : head[5] + head[6]]


def _with_metadata(seed: Blob, sound: trees.Tree, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Put changed metadata in, and move what lies behind it."""
    head = list(maps.APR_HEADER.unpack_from(seed.data))
    start, table, body = head[5], head[7], head[8]
    large = trees.maybe_large(_metadata_of(seed), chance)
    metadata, said = large or trees.json_bytes(sound, chance)
    padding = bytes(-(start + len(metadata)) % 64)
    head[6], head[7] = len(metadata), start + len(metadata) + len(padding)
    head[8] = head[7] + body - table
    return maps.APR_HEADER.pack(*head) + metadata + padding + seed.data[table:], said


def safetensors(folder: Path) -> Maker:
    """A HuggingFace directory: one file or shards with their index."""
    model = TINY_LLAMA / "model"
    config, weights = (model / "config.json").read_bytes(), (model / "model.safetensors").read_bytes()
    seed, header = maps.safetensors(weights), header_of(weights)
    single = {"config.json": config, "model.safetensors": weights}
    sharded = {"config.json": config, **_shards(weights)}
    index = trees.tree(json.loads(sharded["model.safetensors.index.json"]))
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        way = chance.random()
        files: Files
        if way < 0.3:
            data, said = blobs.changed(seed, chance)
            files = {**single, "model.safetensors": data}
        elif way < 0.65:
            data, said = with_header(weights, header, chance)
            files = {**single, "model.safetensors": data}
        elif way < 0.85:
            name = "model.safetensors.index.json"
            large = trees.maybe_large(sharded[name], chance)
            data, said = large or trees.json_bytes(index, chance)
            files = {**sharded, name: data}
        else:
            files, said = folders.changed(chance.choice((single, sharded)), chance)
        size = shown.show(files)
        return Input(read=lambda: used(open_model(folder)), size=size, said=said)

    return make


def header_of(data: bytes) -> trees.Tree:
    """Return the JSON header of a safetensors file."""
    return trees.tree(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


def with_header(data: bytes, sound: trees.Tree, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Change the JSON header of a safetensors file; its length most often fits."""
    length = int.from_bytes(data[:8], "little")
    large = trees.maybe_large(data[8 : 8 + length], chance)
    header, said = large or trees.json_bytes(sound, chance)
    stated = len(header) + (chance.choice((-1, 1, 8, 1 << 40)) if chance.random() < 0.1 else 0)
    return (stated % (1 << 64)).to_bytes(8, "little") + header + data[8 + length :], said


def _shards(data: bytes) -> dict[str, bytes]:
    """Return the tensors of a file in two files, and their index."""
    from safetensors.numpy import load, save

    tensors = dict(sorted(load(data).items()))  # the package gives them in any order
    half = len(tensors) // 2
    parts = {
        f"model-0000{number}-of-00002.safetensors": dict(part)
        for number, part in ((1, list(tensors.items())[:half]), (2, list(tensors.items())[half:]))
    }
    places = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": sum(one.nbytes for one in tensors.values())}, "weight_map": places}
    return {
        **{
            file: save({name: np.ascontiguousarray(one) for name, one in part.items()})
            for file, part in parts.items()
        },
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


def _configs() -> list[dict[str, Any]]:
    real = [json.loads((path / "config.json").read_bytes()) for path in (TINY, TINY_LLAMA / "model")]
    exam = [dict(row.config) for row in BLUEPRINTS.values() if row.config]
    return [*real, *exam, *({**CONFIG, **knobs} for knobs in KNOBS.values())]


def config(folder: Path) -> Maker:
    """The ``config.json`` of a HuggingFace directory, of every family."""
    seeds = [trees.tree(one) for one in _configs()]
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        seed = chance.choice(seeds)
        large = trees.maybe_large(json.dumps(seed.value).encode(), chance)
        data, said = large or trees.json_bytes(seed, chance)
        size = shown.show({"config.json": data})

        def read() -> None:
            geometry = geometry_of_hf_dir(folder)
            assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry
            roles_at(geometry, 0)

        return Input(read=read, size=size, said=said)

    return make
