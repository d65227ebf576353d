"""A trace: the captured stages of one run, in memory and as a directory in apr's own layout.

On disk: ``layer-<N>/<stage>.bin`` and ``<stage>.bin`` (APRT files), and ``trace.json`` beside them
(schema ``apr-falsify/trace/v1``). A directory is written under a temporary name and renamed last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import PassesError, StageError, TraceError
from apr_falsify.formats.aprt import AprtFile, read_aprt
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import ROWS, STAGES, Key, Layout, stored_shape
from apr_falsify.reading import flag, items, mapping, read_json, text, whole
from apr_falsify.traces.provenance import Provenance as Provenance
from apr_falsify.traces.provenance import utc_now as utc_now
from apr_falsify.traces.stage_files import check_place, scan

SCHEMA = "apr-falsify/trace/v1"
TRACE_JSON = "trace.json"


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
class Borrowed:
    """Rows of a stage that a recording lacks.

    Attributes:
        values: those of the tokens before the recorded ones, canonical.
        sigma: how far they may be from the run's own, root mean square.

    """

    values: npt.NDArray[np.float64]
    sigma: float


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
        in_passes: how the run computed its tokens; ``None``: at once.
        borrowed: rows of tokens that were not recorded, from another run.
        batch: of the other rows of a batch, what attention reads of a row: row -> stage -> canonical values.

    """

    provenance: Provenance
    geometry: Geometry
    tokens: tuple[int, ...]
    stages: Mapping[Key, StageArray]
    path: Path | None = None
    tokens_verified: bool = True
    in_passes: Passes | None = None
    borrowed: Mapping[Key, Borrowed] = field(default_factory=dict)
    batch: Mapping[int, Mapping[Key, npt.NDArray[Any]]] = field(default_factory=dict)

    @property
    def passes(self) -> Passes:
        """How the run computed its tokens."""
        return self.in_passes or Passes.whole(len(self.tokens))

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
    check_place(directory / TRACE_JSON, directory.resolve())
    trace, listed = read_listing(data, directory)
    files = scan(directory)
    _same_stages(directory, listed, files)
    stages = {key: _load(files[key], entry, trace.geometry, trace.passes) for key, entry in listed.items()}
    return replace(trace, stages=stages, path=directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What trace.json says about one stage."""

    key: Key
    shape: tuple[int, ...]
    layout: tuple[Layout, ...]
    sha256: str


def read_listing(data: Mapping[str, Any], where: Path) -> tuple[Trace, dict[Key, Listed]]:
    """Read the content of a ``trace.json`` of schema v1: a trace without values, and what it lists.

    ``where`` is the trace that errors name.

    Raises:
        TraceError: a value is missing, of the wrong type, or contradicts another.

    """
    try:
        tokens = tuple(whole(token, "a token") for token in items(data["tokens"], "tokens"))
        geometry = Geometry.from_json(data["geometry"], where / TRACE_JSON)
        provenance = Provenance.from_json(mapping(data["provenance"], "the provenance"))
        entries = [_entry(entry) for entry in items(data["stages"], "stages")]
        verified = flag(data.get("tokens_verified", True), "tokens_verified")
        listed = _by_key(entries, geometry, tokens)
        passes = Passes.from_json(data, len(tokens))
    except KeyError as error:
        raise _garbled(where, f"{TRACE_JSON} has no {error}") from error
    except PassesError as error:
        raise _garbled(where, f"{TRACE_JSON} holds an unusable value: {error.what}") from error
    except ValueError as error:
        raise _garbled(where, f"{TRACE_JSON} holds an unusable value: {error}") from error
    trace = Trace(
        provenance=provenance,
        geometry=geometry,
        tokens=tokens,
        stages={},
        tokens_verified=verified,
        in_passes=None if passes.plain else passes,
    )
    return trace, listed


def _entry(data: object) -> Listed:
    entry = mapping(data, "a stage")
    layer = entry["layer"]
    return Listed(
        key=Key(None if layer is None else whole(layer, "a layer"), text(entry["stage"], "a stage's name")),
        shape=tuple(whole(size, "a size") for size in items(entry["shape"], "a shape")),
        layout=tuple(Layout(text(word, "a layout word")) for word in items(entry["layout"], "a layout")),
        sha256=text(entry["sha256"], "a digest"),
    )


def _by_key(entries: list[Listed], geometry: Geometry, tokens: tuple[int, ...]) -> dict[Key, Listed]:
    """Return the entries by key, after checking what they say against tokens and geometry."""
    if not tokens:
        raise ValueError("no tokens")
    for token in tokens:
        if not 0 <= token < geometry.vocab:
            raise ValueError(f"token {token} is outside the vocabulary of {geometry.vocab}")
    listed = {entry.key: entry for entry in entries}
    if len(listed) != len(entries):
        raise ValueError("a stage is listed twice")
    for layer, name in listed:
        if layer is not None and not 0 <= layer < geometry.layers:
            raise ValueError(f"{name} of layer {layer} in a model of {geometry.layers} layers")
    return listed


def _garbled(directory: Path, what: str) -> TraceError:
    return TraceError(what, where=directory, remedy="capture the trace again")


def _read_json(directory: Path) -> dict[str, Any]:
    path = directory / TRACE_JSON
    try:
        data = read_json(path)
    except OSError as error:
        raise TraceError(
            f"no {TRACE_JSON} ({error.strerror})",
            where=directory,
            expected="a directory that `apr-falsify capture` wrote",
            remedy="for a directory straight from apr: recorded:DIR with --oracle MODEL and --tokens 1,2,3",
        ) from error
    except ValueError as error:
        raise TraceError(f"{TRACE_JSON} is no usable JSON: {error}", where=directory) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise TraceError(
            f"the schema of {TRACE_JSON} is {found!r}",
            where=directory,
            expected=SCHEMA,
            remedy="use the version of apr-falsify that wrote it, or capture again",
        )
    return data


def _same_stages(directory: Path, listed: Mapping[Key, Any], files: Mapping[Key, Path]) -> None:
    missing = sorted(relative_path(key) for key in listed.keys() - files.keys())
    extra = sorted(relative_path(key) for key in files.keys() - listed.keys())
    if missing:
        raise TraceError(
            f"{_counted(missing)} of trace.json missing, the first is {missing[0]}",
            where=directory,
            remedy="capture the trace again",
        )
    if extra:
        raise TraceError(
            f"{_counted(extra)} not in trace.json, the first is {extra[0]}",
            where=directory,
            remedy="remove what does not belong to the trace, or capture it again",
        )


def _counted(files: list[str]) -> str:
    return f"{len(files)} stage file{'s' if len(files) > 1 else ''}"


def _load(path: Path, entry: Listed, geometry: Geometry, passes: Passes) -> StageArray:
    values = read_stage(path, entry.key)
    found = sha256_of(path)
    if found != entry.sha256:
        raise TraceError(
            f"its sha256 is {found}",
            where=path,
            expected=f"{entry.sha256}, as {TRACE_JSON} says",
            remedy="capture the trace again; the file was changed after it was written",
        )
    array = shaped(values, entry.key, entry.layout, geometry, passes.tokens, path, passes.rows)
    if array.shape != entry.shape:
        raise TraceError(
            f"{TRACE_JSON} gives the shape {list(entry.shape)}", where=path, expected=str(list(array.shape))
        )
    return StageArray(data=array, layout=entry.layout, sha256=found)


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
    if file.layer != key.layer:
        named: dict[int | None, str] = {None: "the whole model"}
        raise TraceError(
            f"the header names {named.get(file.layer, f'layer {file.layer}')}",
            where=path,
            expected=named.get(key.layer, f"layer {key.layer}") + ", as its path says",
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
    rows: int | None = None,
) -> npt.NDArray[np.float32]:
    """Return ``values`` in the shape that ``layout`` says; ``rows`` are the tokens recorded, of ``tokens``.

    Raises:
        TraceError: their number fits no shape of this geometry.

    """
    dims = geometry.dims(tokens)
    try:
        shape = stored_shape(
            key.stage, layout, {**dims, **({} if rows is None else {ROWS: rows})}, values.size
        )
    except StageError as error:
        raise TraceError(error.what, where=path, remedy="remove the file") from error
    if shape is None:
        expected = " x ".join(f"{dims[axis]} {axis}" for axis in STAGES[key.stage].axes)
        raise TraceError(
            f"{values.size} values fit no shape of {key.stage}",
            where=path,
            expected=f"{expected} ({geometry.family}, {tokens} tokens)",
            remedy="check that the model and --tokens are those of the trace",
        )
    return values.reshape(shape)


def trace_json(trace: Trace) -> dict[str, Any]:
    """Return the content of ``trace.json``."""
    return {
        "schema": SCHEMA,
        "provenance": trace.provenance.to_json(),
        "geometry": trace.geometry.to_json(),
        "tokens": list(trace.tokens),
        "tokens_verified": trace.tokens_verified,
        **trace.passes.to_json(),
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
    """Whether a finished trace of ours lies at ``path``: trace.json is written last."""
    return (path / TRACE_JSON).exists()
