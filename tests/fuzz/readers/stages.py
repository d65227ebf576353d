"""APRT files, traces with ``trace.json``, and directories as ``apr`` leaves them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from apr_falsify.formats.aprt import parse_aprt, read_aprt
from apr_falsify.formats.weights import open_model
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace, read_trace
from tests.fuzz import blobs, folders, maps, trees
from tests.fuzz.folders import Files, Folder
from tests.fuzz.readers.inputs import Input, Maker
from tests.support import DATA
from tests.unit.helpers import TINY

APR_RUN = DATA / "apr-tiny-qwen2" / "base"
APR_TOKENS = (274, 272, 332, 13, 20, 33)


def aprt(folder: Path) -> Maker:
    """One stage file, by its path and by its bytes."""
    seeds = [maps.aprt((APR_RUN / name).read_bytes()) for name in ("layer-0/attn_norm.bin", "final_norm.bin")]
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        seed, other = chance.sample(seeds, 2)
        data, said = (
            blobs.grafted(seed, other, chance) if chance.random() < 0.03 else blobs.changed(seed, chance)
        )
        size = shown.show({"x.bin": data})
        path = folder / "x.bin"
        way = (lambda: parse_aprt(data, path)) if chance.random() < 0.3 else lambda: read_aprt(path)
        return Input(read=lambda: way().values.tobytes(), size=size, said=said)

    return make


def bundled_trace(side: str) -> dict[str, bytes]:
    """Return the files of a trace that an earlier version wrote."""
    with zipfile.ZipFile(DATA / "bundle-v1.zip") as archive:
        return {
            name.removeprefix(f"{side}/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{side}/") and not name.endswith("/")
        }


def trace(folder: Path) -> Maker:
    """A trace of ours: its ``trace.json``, its stage files, and which files there are."""
    sound = bundled_trace("subject")
    said = trees.tree(json.loads(sound["trace.json"]))
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        way = chance.random()
        large = trees.maybe_large(sound["trace.json"], chance)
        files: Files = sound
        if large or way < 0.6:
            data, words = large or trees.json_bytes(said, chance)
            files = {**sound, "trace.json": data}
        elif way < 0.8:
            files, words = _with_stage(sound, chance)
        else:
            files, words = folders.changed(sound, chance)
        size = shown.show(files)
        return Input(read=lambda: _used(read_trace(folder)), size=size, said=words)

    return make


def _with_stage(sound: dict[str, bytes], chance: Random) -> tuple[Files, tuple[str, ...]]:
    """Change a stage file; half of the time ``trace.json`` gives the digest that it then has."""
    name = chance.choice([name for name in sound if name.endswith(".bin")])
    data, words = blobs.changed(maps.aprt(sound[name]), chance)
    files = {**sound, name: data}
    if chance.random() < 0.5:
        old, new = (hashlib.sha256(one).hexdigest() for one in (sound[name], data))
        files["trace.json"] = sound["trace.json"].replace(old.encode(), new.encode())
    return files, (name, *words)


def _used(found: Trace) -> None:
    for array in found.stages.values():
        array.data.tobytes()


def apr_recording(folder: Path) -> Maker:
    """A directory of APRT files without ``trace.json``."""
    names = [path.relative_to(APR_RUN).as_posix() for path in sorted(APR_RUN.rglob("*.bin"))]
    sound = {name: (APR_RUN / name).read_bytes() for name in names if "layer-1" not in name}
    model = open_model(TINY)
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        files: Files
        if chance.random() < 0.4:
            files, words = _with_stage({**sound, "trace.json": b""}, chance)
            files = {name: data for name, data in files.items() if name != "trace.json"}
        else:
            files, words = folders.changed(sound, chance)
        options: dict[str, Any] = {"tokens": APR_TOKENS if chance.random() < 0.9 else None}
        target = Target(path=folder, model=model, **options)
        size = shown.show(files)
        return Input(read=lambda: _used(open_recorded(target).trace), size=size, said=words)

    return make
