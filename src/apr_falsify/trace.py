"""A trace: the captured stages of one run, in memory and as a directory in apr's own layout.

On disk: ``layer-<N>/<stage>.bin`` and ``<stage>.bin`` (APRT files), and ``trace.json`` beside them
(schema ``apr-falsify/trace/v1``). A directory is written under a temporary name and renamed last.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.aprt import AprtFile, read_aprt
from apr_falsify.errors import AprFalsifyError, StageError, TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.stages import Layout, Scope, stage, stored_shape

SCHEMA = "apr-falsify/trace/v1"
TRACE_JSON = "trace.json"
INCOMPLETE = "INCOMPLETE"
"""A file that stands in a directory while it is being written; nothing reads such a directory."""

Key = tuple[int | None, str]
"""A stage of a run: its layer (``None`` for a whole-model stage) and its name."""

_LAYER_DIRECTORY = re.compile(r"layer-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageArray:
    """One captured stage.

    Attributes:
        data: the values, in the shape in which the runtime stores them.
        layout: how that differs from the canonical shape; empty where it does not.
        sha256: digest of its APRT file, where it lies on disk.

    """

    data: npt.NDArray[Any]
    layout: tuple[Layout, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a trace comes from: what a reviewer needs to make it again.

    Attributes:
        runtime: name of the runtime (``hf``, ``embedded``, ``apr`` ...).
        version: its version, ``unknown`` where it reports none.
        binary_sha256: digest of its binary, where it is one.
        driver: the program that ran it, with version.
        model: path or hub id of the model.
        model_sha256: digest of the model's weight files.
        prompt: the text, where there was one.
        argmax: id and text of the most likely next token, where the logits were captured.
        dtype: number format of weights and activations.
        device: ``cpu``, ``cuda`` or ``unknown``.
        arithmetic: how sums are done, in the words of ``arithmetic.py``.
        libraries: versions of the libraries that computed it.
        layers: the layers asked for, ``None`` where that is not known.
        stages: the stages asked for, ``None`` where that is not known.
        created: UTC time, ISO 8601.
        commit: git commit of the program that captured it.

    """

    runtime: str
    version: str = "unknown"
    binary_sha256: str | None = None
    driver: str = ""
    model: str = ""
    model_sha256: str | None = None
    prompt: str | None = None
    argmax: Mapping[str, Any] | None = None
    dtype: str = "unknown"
    device: str = "unknown"
    arithmetic: str = "unknown"
    libraries: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[int, int] | None = None
    stages: tuple[str, ...] | None = None
    created: str = ""
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """Read what :meth:`to_json` wrote; keys of a later version are passed over."""
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        for key in ("layers", "stages"):
            if known.get(key) is not None:
                known[key] = tuple(known[key])
        return cls(**known)


def utc_now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The captured stages of one run.

    Attributes:
        provenance: where it comes from.
        geometry: the model's geometry.
        tokens: the token ids that were run.
        stages: what was captured.
        path: its directory, ``None`` for a trace in memory.
        tokens_verified: whether the ids were checked against something the run itself wrote.

    """

    provenance: Provenance
    geometry: Geometry
    tokens: tuple[int, ...]
    stages: Mapping[Key, StageArray]
    path: Path | None = None
    tokens_verified: bool = True

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which anything was captured."""
        return tuple(sorted({layer for layer, _ in self.stages if layer is not None}))


def relative_path(key: Key) -> str:
    """Return where a stage's file lies in its trace."""
    layer, name = key
    return f"{name}.bin" if layer is None else f"layer-{layer}/{name}.bin"


def read_trace(directory: Path) -> Trace:
    """Open the trace at ``directory``; its stages are memory maps.

    Every file is checked: header, size, shape, digest, and that none is missing or extra.

    Raises:
        TraceError: no trace.json, another schema, or a file that is not as trace.json says.
        AprtError: a file that is not a whole APRT file.

    """
    data = _read_json(directory)
    try:
        geometry = Geometry.from_json(data["geometry"], directory / TRACE_JSON)
        provenance = Provenance.from_json(data["provenance"])
        tokens = tuple(int(token) for token in data["tokens"])
        listed = {_key(entry): entry for entry in data["stages"]}
        verified = bool(data.get("tokens_verified", True))
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"trace.json lacks or garbles {error}", where=directory, remedy="capture the trace again"
        ) from error
    if len(listed) != len(data["stages"]):
        raise TraceError("trace.json lists a stage twice", where=directory)
    files = scan(directory)
    _same_stages(directory, listed, files)
    stages = {key: _load(directory, key, files[key], listed[key], geometry, len(tokens)) for key in listed}
    return Trace(
        provenance=provenance,
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=directory,
        tokens_verified=verified,
    )


def _read_json(directory: Path) -> dict[str, Any]:
    path = directory / TRACE_JSON
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(
            f"no {TRACE_JSON} ({error.strerror})",
            where=directory,
            expected="a directory that `apr-falsify capture` wrote",
            remedy="for a directory straight from apr: recorded:DIR with --oracle MODEL and --tokens 1,2,3",
        ) from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{TRACE_JSON} is no JSON: {error}", where=directory) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise TraceError(
            f"the schema of {TRACE_JSON} is {found!r}",
            where=directory,
            expected=SCHEMA,
            remedy="use the version of apr-falsify that wrote it, or capture again",
        )
    return data


def _key(entry: Mapping[str, Any]) -> Key:
    layer = entry["layer"]
    return (None if layer is None else int(layer)), str(entry["stage"])


def _same_stages(directory: Path, listed: Mapping[Key, Any], files: Mapping[Key, Path]) -> None:
    missing = sorted(relative_path(key) for key in listed.keys() - files.keys())
    extra = sorted(relative_path(key) for key in files.keys() - listed.keys())
    if missing:
        raise TraceError(
            f"{len(missing)} stage files of trace.json are missing, the first is {missing[0]}",
            where=directory,
            remedy="capture the trace again",
        )
    if extra:
        raise TraceError(
            f"{len(extra)} stage files are not in trace.json, the first is {extra[0]}",
            where=directory,
            remedy="remove what does not belong to the trace, or capture it again",
        )


def _load(
    directory: Path, key: Key, path: Path, entry: Mapping[str, Any], geometry: Geometry, tokens: int
) -> StageArray:
    layout = tuple(Layout(word) for word in entry["layout"])
    found = sha256_of(path)
    if found != entry["sha256"]:
        raise TraceError(
            f"its sha256 is {found}",
            where=path,
            expected=f"{entry['sha256']}, as trace.json says",
            remedy="capture the trace again; the file was changed after it was written",
        )
    array = shaped(read_stage(path, key), key, layout, geometry, tokens, path)
    if list(array.shape) != entry["shape"]:
        raise TraceError(
            f"trace.json gives the shape {entry['shape']}", where=path, expected=str(list(array.shape))
        )
    return StageArray(data=array, layout=layout, sha256=found)


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file at ``path`` in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_stage(path: Path, key: Key) -> npt.NDArray[np.float32]:
    """Return the values of a stage file, flat; its header must name the layer of its path.

    Raises:
        AprtError: not a whole APRT file.
        TraceError: the header names another layer.

    """
    file: AprtFile = read_aprt(path)
    if file.layer != key[0]:
        named: dict[int | None, str] = {None: "the whole model"}
        raise TraceError(
            f"the header names {named.get(file.layer, f'layer {file.layer}')}",
            where=path,
            expected=named.get(key[0], f"layer {key[0]}") + ", as its path says",
            remedy="capture again; files of different layers were mixed",
        )
    return file.values


def shaped(
    values: npt.NDArray[np.float32],
    key: Key,
    layout: tuple[Layout, ...],
    geometry: Geometry,
    tokens: int,
    path: Path,
) -> npt.NDArray[np.float32]:
    """Return ``values`` in the shape that ``layout`` says.

    Raises:
        TraceError: their number fits no shape of this geometry.

    """
    dims = geometry.dims(tokens)
    shape = stored_shape(key[1], layout, dims, values.size)
    if shape is None:
        expected = " x ".join(f"{dims[axis]} {axis}" for axis in stage(key[1]).axes)
        raise TraceError(
            f"{values.size} values fit no shape of {key[1]}",
            where=path,
            expected=f"{expected} ({geometry.family}, {tokens} tokens)",
            remedy="check that the model and --tokens are those of the trace",
        )
    return values.reshape(shape)


def scan(directory: Path) -> dict[Key, Path]:
    """Return the stage files under ``directory``, by layer and stage, in the table's order.

    Raises:
        TraceError: an unfinished directory, an unknown or misplaced stage, a stage that is there
            twice, a link that leaves the directory, or no stage at all.

    """
    if not directory.is_dir():
        raise TraceError("no such directory", where=directory, expected="a directory of APRT stage files")
    if (directory / INCOMPLETE).exists():
        raise TraceError(
            "the capture that wrote it did not finish", where=directory, remedy="remove it and capture again"
        )
    found: dict[Key, Path] = {}
    for layer, path in _stage_files(directory):
        key = (layer, _stage_name(path, layer))
        if key in found:
            raise TraceError(f"{path.name} is there twice: also as {found[key]}", where=path)
        found[key] = path
    if not found:
        raise TraceError(
            "no stage files",
            where=directory,
            expected="layer-<N>/<stage>.bin",
            remedy="capture the run first",
        )
    return found


def _stage_files(directory: Path) -> Iterator[tuple[int | None, Path]]:
    root = directory.resolve()
    layers = sorted(
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _LAYER_DIRECTORY.fullmatch(path.name)) and path.is_dir()
    )
    folders: list[tuple[int | None, Path]] = [*layers, (None, directory)]
    for layer, folder in folders:
        for path in sorted(folder.glob("*.bin")):
            if not path.resolve().is_relative_to(root):
                raise TraceError(
                    "a link leads out of the trace", where=path, expected="files within the directory"
                )
            yield layer, path


def _stage_name(path: Path, layer: int | None) -> str:
    try:
        row = stage(path.stem)
    except StageError as error:
        raise TraceError(error.what, where=path, expected=error.expected, remedy=error.remedy) from error
    if (layer is None) != (row.scope is Scope.MODEL):
        place = "beside the layer directories" if row.scope is Scope.MODEL else "in a directory layer-<N>"
        raise TraceError(f"{row.name} lies in the wrong place", where=path, expected=place)
    if row.scope is Scope.FIRST_LAYER and layer != 0:
        raise TraceError(f"{row.name} exists in layer 0 alone", where=path)
    return row.name


def trace_json(trace: Trace) -> dict[str, Any]:
    """Return the content of ``trace.json``."""
    return {
        "schema": SCHEMA,
        "provenance": trace.provenance.to_json(),
        "geometry": trace.geometry.to_json(),
        "tokens": list(trace.tokens),
        "tokens_verified": trace.tokens_verified,
        "stages": [
            {
                "layer": layer,
                "stage": name,
                "shape": list(array.data.shape),
                "layout": list(array.layout),
                "sha256": array.sha256,
            }
            for (layer, name), array in trace.stages.items()
        ],
    }


def is_trace(path: Path) -> bool:
    """Whether ``path`` looks like a finished trace of ours, or a bare directory of stage files."""
    try:
        return (path / TRACE_JSON).is_file() or bool(path.is_dir() and scan(path))
    except AprFalsifyError:
        return False
