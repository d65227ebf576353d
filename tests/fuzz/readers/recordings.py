"""Foreign recordings: ``.npz``, folders of ``.npy``, ``.safetensors``, their mapping, llama.cpp's graph."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from safetensors.numpy import save

from apr_falsify.formats.weights import Model, open_model
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp.recording import open_recording
from apr_falsify.subjects.mapped import read_mapped
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.fuzz import blobs, folders, lines, maps, trees, zips
from tests.fuzz.folders import Files, Folder
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.readers.models import header_of, with_header
from tests.fuzz.readers.stages import APR_RUN, APR_TOKENS
from tests.fuzz.zips import Member
from tests.unit.helpers import TINY
from tests.unit.subjects.smollm2_recording import RECORDING, SMOLLM2

_KEPT = ("embedding", "attn_norm", "qkv_matmul", "attn_scores", "attn_softmax", "ffn_norm", "final_norm")
_MAPPING = "MAPPING.yaml"


def _target(path: Path, model: Model) -> Target:
    return Target(path=path, model=model)


def recorded(model: Model) -> Trace:
    """Return a real run of ``apr``."""
    return open_recorded(Target(path=APR_RUN, model=model, tokens=APR_TOKENS)).trace


def _arrays(trace: Trace) -> dict[str, npt.NDArray[Any]]:
    """Return some stages of a real run of ``apr`` under the names of another program."""
    return {
        f"L{layer}.{name}" if layer is not None else name: np.array(array.data, dtype=np.float32)
        for (layer, name), array in trace.stages.items()
        if name in _KEPT and layer in (0, None)
    }


def _said(trace: Trace) -> dict[str, Any]:
    stages: dict[str, Any] = {
        name: {"from": f"L{{layer}}.{name}" if layer is not None else name}
        for layer, name in trace.stages
        if name in _KEPT and layer in (0, None)
    }
    stages["attn_scores"]["layout"] = ["causal-zeroed"]
    stages["attn_softmax"]["layout"] = ["padded-keys"]
    return {
        "schema": "apr-falsify/mapping/v1",
        "runtime": "other",
        "dtype": "f32",
        "tokens": list(APR_TOKENS),
        "stages": stages,
    }


def _npy(values: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _used(found: Trace) -> None:
    for array in found.stages.values():
        array.data.tobytes()


def members_of(trace: Trace) -> tuple[Member, ...]:
    """Return the files of an ``.npz`` with some stages and the token ids."""
    arrays = {**_arrays(trace), "token_ids": np.array(APR_TOKENS)}
    return tuple(Member(name=f"{name}.npy", data=_npy(values)) for name, values in arrays.items())


def npz(folder: Path) -> Maker:
    """An ``.npz`` with a mapping file beside it."""
    model = open_model(TINY)
    trace = recorded(model)
    said, members = {**_said(trace), "tokens": "token_ids"}, members_of(trace)
    mapping = yaml.safe_dump(said, sort_keys=False).encode()
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        data, words = other_archive(members, chance)
        size = shown.show({_MAPPING: mapping, "x.npz": data})
        target = _target(folder / "x.npz", model)
        return Input(read=lambda: _used(read_mapped(target, folder / _MAPPING)), size=size, said=words)

    return make


_BOMBS = (
    ("(6, 256)", "<f4"),
    (f"({zips.BOMB >> 3},)", "<i8"),
    (f"(8, 6, {zips.BOMB // 192})", "<f4"),
    (f"(6, {zips.BOMB // 24})", "<f4"),
    ("(0,)", "<f4"),
)
_BOMB_RATE = 0.0015


def other_archive(members: tuple[Member, ...], chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return an archive with another array, other members or other bytes."""
    if chance.random() < _BOMB_RATE:
        name = chance.choice(members).name
        shape, kind = chance.choice(_BOMBS)
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        start = chance.choice((zips.npy_bytes(header, b""), b"\x93NUMPY\x02\x00\xff\xff\xff\x0b"))
        return zips.bomb(members, name, start), (f"{name} is a bomb of {shape} {kind}",)
    if chance.random() < 0.35:
        at = chance.randrange(len(members))
        data, words = zips.npy_changed(members[at].data, chance)
        other = Member(name=members[at].name, data=data, packed=chance.random() < 0.3)
        return zips.zip_bytes([*members[:at], other, *members[at + 1 :]]), (members[at].name, *words)
    return zips.changed(members, chance)


def npy(folder: Path) -> Maker:
    """A folder of ``.npy`` files with a mapping file."""
    model = open_model(TINY)
    trace = recorded(model)
    sound: dict[str, bytes] = {f"{name}.npy": _npy(values) for name, values in _arrays(trace).items()}
    sound[_MAPPING] = yaml.safe_dump(_said(trace), sort_keys=False).encode()
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        files: Files
        if chance.random() < 0.75:
            name = chance.choice([name for name in sound if name.endswith(".npy")])
            data, words = zips.npy_changed(sound[name], chance)
            files, words = {**sound, name: data}, (name, *words)
        else:
            files, words = folders.changed(sound, chance)
        size = shown.show(files)
        target = _target(folder, model)
        return Input(read=lambda: _used(read_mapped(target, folder / _MAPPING)), size=size, said=words)

    return make


def safetensors(folder: Path) -> Maker:
    """A recording in ``.safetensors`` with a mapping file."""
    model = open_model(TINY)
    trace = recorded(model)
    sound = save(_arrays(trace))
    header = header_of(sound)
    seed, mapping = maps.safetensors(sound), yaml.safe_dump(_said(trace), sort_keys=False).encode()
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        way = chance.random() < 0.6
        data, words = with_header(sound, header, chance) if way else blobs.changed(seed, chance)
        size = shown.show({_MAPPING: mapping, "x.safetensors": data})
        target = _target(folder / "x.safetensors", model)
        return Input(read=lambda: _used(read_mapped(target, folder / _MAPPING)), size=size, said=words)

    return make


_MAPPINGS = (
    "L{layer:02}.x",
    "L{layer+1}.x",
    "{layer}{layer}",
    "{layer+99999}",
    "{layer:9}",
    "L{layer-1}.attn_norm",
    "L0.attn_norm",
)


def mapping(folder: Path) -> Maker:
    """A mapping file, over a recording that stays as it is."""
    model = open_model(TINY)
    trace = recorded(model)
    archive = zips.zip_bytes(
        [Member(name=f"{name}.npy", data=_npy(one)) for name, one in _arrays(trace).items()]
    )
    said = _said(trace)
    said["stages"]["qkv_matmul"]["axes"] = ["tokens", "qkv"]
    said["stages"]["ffn_norm"]["dtype"] = "f32"
    said["stages"]["embedding"]["axes"] = ["tokens", "hidden"]
    value, text = trees.tree(said), yaml.safe_dump(said, sort_keys=False)
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        way = chance.random()
        if way < trees.LARGE:
            data, words = lines.large_yaml(text, chance)
        elif way < 0.5:
            data, words = trees.json_bytes(value, chance)
        elif way < 0.55:
            name = chance.choice(_MAPPINGS)
            data, words = text.replace("L{layer}.attn_norm", name).encode(), (name,)
        else:
            data, words = lines.yaml_bytes(text, chance)
        size = shown.show({_MAPPING: data, "x.npz": archive})
        target = _target(folder / "x.npz", model)
        # the arrays are no part of what is changed, so they buy no memory
        return Input(
            read=lambda: _used(read_mapped(target, folder / _MAPPING)), size=len(data) or size, said=words
        )

    return make


def llama_cpp(folder: Path) -> Maker:
    """A recording of llama.cpp's graph: nodes of the layer 0 and of the whole model."""
    with np.load(RECORDING) as file:
        nodes: Mapping[str, npt.NDArray[Any]] = {
            name: file[name] for name in file.files if "-0" in name or "-" not in name
        }
    small = {name: values for name, values in nodes.items() if values.nbytes < 60_000}
    small["token_ids"] = np.array([1780, 314, 216, 34, 27, 34, 47])
    members = tuple(Member(name=f"{name}.npy", data=_npy(values)) for name, values in small.items())
    reference = _empty_trace()
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        data, words = other_archive(members, chance)
        size = shown.show({"x.npz": data})
        target = Target(path=folder / "x.npz", reference=reference)
        return Input(read=lambda: _used(open_recording(target).trace), size=size, said=words)

    return make


def _empty_trace() -> Trace:
    """Return what a recording takes the model's geometry from, where no model is named."""
    from apr_falsify.traces.provenance import Provenance

    return Trace(provenance=Provenance(runtime="hf"), geometry=SMOLLM2, tokens=(1,), stages={})
