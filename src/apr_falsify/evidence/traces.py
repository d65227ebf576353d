"""The two traces of a bundle, in memory: with their values, or with the digests of those alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, TraceError
from apr_falsify.evidence.files import BundleProblem, json_bytes, load_json, sha256
from apr_falsify.formats.aprt import parse_aprt, write_aprt
from apr_falsify.model.stages import Key
from apr_falsify.reading import mapping
from apr_falsify.traces.trace import (
    SCHEMA,
    TRACE_JSON,
    Listed,
    StageArray,
    Trace,
    read_listing,
    relative_path,
    shaped,
    trace_json,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideTrace:
    """One side's trace, as a bundle holds it.

    Attributes:
        trace: the trace; without stages where the bundle holds only their digests.
        has_values: whether the stage files are in the bundle.
        provenance: where the run comes from, as ``trace.json`` says it; it may be of another version.

    """

    trace: Trace
    has_values: bool
    provenance: Mapping[str, Any]


def files_of(trace: Trace, side: str, *, values: bool) -> dict[str, bytes]:
    """Return the files of one side: ``trace.json``, and with ``values`` the stage files.

    Raises:
        AprtError: a stage that an APRT file cannot hold.

    """
    files: dict[str, bytes] = {}
    stages: dict[Key, StageArray] = {}
    for key, array in trace.stages.items():
        file = io.BytesIO()
        digest = write_aprt(file, array.data, key.layer)
        stages[key] = replace(array, sha256=digest)
        if values:
            files[f"{side}/{relative_path(key)}"] = file.getvalue()
    files[f"{side}/{TRACE_JSON}"] = json_bytes(trace_json(replace(trace, stages=stages)))
    return files


def read_side(files: Mapping[str, bytes], side: str) -> SideTrace:
    """Return one side's trace.

    Raises:
        TraceError, AprtError: a value of ``trace.json`` is unusable, a stage file is not as it says, or some
            of its stage files are there and some are not.

    """
    name = f"{side}/{TRACE_JSON}"
    try:
        data: Mapping[str, Any] = mapping(load_json(files, name), "it")
    except ValueError as error:
        raise TraceError(f"is no usable JSON: {error}", where=name) from error
    if data.get("schema") != SCHEMA:
        raise TraceError(f"its schema is {data.get('schema')!r:.80}", where=name, expected=SCHEMA)
    trace, listed = read_listing(data, Path(side))
    found = {one for one in files if one.startswith(f"{side}/") and one != name}
    expected = {f"{side}/{relative_path(key)}": entry for key, entry in listed.items()}
    if extra := sorted(found - expected.keys()):
        raise TraceError(f"is not in {name}", where=extra[0])
    if found and (missing := sorted(expected.keys() - found)):
        raise TraceError(f"{name} lists it, and it is not in the bundle", where=missing[0])
    stages = {entry.key: _stage(files[one], one, entry, trace) for one, entry in expected.items() if found}
    provenance = mapping(data.get("provenance"), "its provenance")
    return SideTrace(trace=replace(trace, stages=stages), has_values=bool(found), provenance=provenance)


def _stage(data: bytes, name: str, entry: Listed, trace: Trace) -> StageArray:
    where = Path(name)
    if sha256(data) != entry.sha256:
        raise TraceError("its sha256 is not the one that trace.json gives", where=name)
    file = parse_aprt(data, where)
    if file.layer != entry.key.layer:
        raise TraceError("its header names another layer than its path", where=name)
    passes = trace.passes
    values = shaped(file.values, entry.key, entry.layout, trace.geometry, passes.tokens, where, passes.rows)
    if values.shape != entry.shape:
        raise TraceError(
            f"trace.json gives the shape {list(entry.shape)}", where=name, expected=str(list(values.shape))
        )
    return StageArray(data=values, layout=entry.layout, sha256=entry.sha256)


def as_problem(error: AprFalsifyError, code: str, file: str) -> BundleProblem:
    """Return what a typed error says as a problem of ``file``, or of the file that it names itself."""
    expected = f" (expected: {error.expected})" if error.expected else ""
    return BundleProblem(code=code, file=error.where or file, message=f"{error.what}{expected}")
