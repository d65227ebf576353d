"""What a lane will need of this machine: programs and models, memory, disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from apr_falsify.commands.checks import Check, CheckState
from apr_falsify.commands.lanes import EMBEDDED, Lane, MissingNeed, lane_of, missing_for, read_lanes
from apr_falsify.commands.live import free_memory, oracle_memory
from apr_falsify.commands.sides import DEFAULT_LAYERS
from apr_falsify.commands.specs import DEFAULT_MODEL, split_subject
from apr_falsify.contracts.settings import nearest_table
from apr_falsify.errors import AprFalsifyError, UsageError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, canonical_shape
from apr_falsify.oracle.hub import local_copy
from apr_falsify.traces.capture import Request

_TOKENS = 16
"""Tokens to reckon with where a lane names none: the fixed prompt has fewer in every tokenizer."""

_BYTES = {"f32": 1.0, "f16": 0.5, "bf16": 0.5}
"""Number format -> what a weight takes of the four bytes that ``oracle_memory`` reckons with."""


def lane_named(name: str, start: Path) -> Lane:
    """Return the lane of the nearest pyproject.toml, from ``start`` upwards, that has ``[tool.apr-falsify]``.

    Raises:
        UsageError: no project is configured, or it has no such lane.

    """
    if name == EMBEDDED:
        return Lane()
    table, folder = nearest_table(start)
    if table is None:
        raise UsageError(
            "no pyproject.toml here has [tool.apr-falsify]",
            where="--lane",
            expected=f"[tool.apr-falsify.lanes.{name}] in the project's pyproject.toml",
        )
    return lane_of(read_lanes(table.get("lanes", {}), folder), name, folder / "pyproject.toml")


def checks_of(lane: Lane) -> Iterator[Check]:
    """Yield what the lane needs and this machine lacks, or that nothing is missing; then memory and disk."""
    missing = missing_for(lane)
    yield from (_missing(lane, one) for one in missing)
    if not missing:
        yield Check(part=f"lane {lane.name}", state=CheckState.FOUND, detail="programs and models are here")
    try:
        oracle = _oracle(lane)
        if oracle is None:
            raise ValueError("the oracle is a trace, or its model is not here")
        yield _memory(lane, oracle)
        yield _disk(lane, oracle)
    except (AprFalsifyError, ValueError) as error:
        detail = f"not reckoned: {error.what if isinstance(error, AprFalsifyError) else error}"
        yield Check(part="memory, disk", state=CheckState.OPTIONAL, detail=detail)


def _missing(lane: Lane, one: MissingNeed) -> Check:
    return Check(part=f"lane {lane.name}", state=CheckState.MISSING, detail=one.what, remedy=one.remedy)


def _subject_path(lane: Lane) -> Path | None:
    """Where the subject's own model is, ``None`` where it runs the oracle's or is a recording."""
    if lane.subject is None:
        return None
    runtime, path = split_subject(lane.subject)
    return path if runtime != "recorded" and path.exists() else None


def _oracle(lane: Lane) -> Model | None:
    if lane.oracle is None:
        return open_model(_subject_path(lane) or DEFAULT_MODEL)
    path = Path(lane.oracle)
    found = path if path.exists() else local_copy(lane.oracle)
    return None if found is None or (found / "trace.json").exists() else open_model(found)


def _request(lane: Lane, oracle: Model) -> Request:
    layers = oracle.geometry.check_layers(lane.layers or DEFAULT_LAYERS)
    return Request(tokens=lane.tokens or (0,) * _TOKENS, layers=layers, stages=tuple(STAGES))


def _memory(lane: Lane, oracle: Model) -> Check:
    """The oracle's layers and the subject's file; where both do not fit they run one after the other."""
    subject = _subject_path(lane)
    held = 0 if subject is None else sum(file.stat().st_size for file in open_model(subject).files)
    dtype = lane.dtype or ("f16" if lane.device == "cuda" else "f32")
    loaded = math.ceil(oracle_memory(oracle, _request(lane, oracle)) * _BYTES[dtype])
    on_device = lane.device == "cuda"
    needed, free = max(0 if on_device else loaded, held), free_memory()
    told = f"oracle {_size(loaded)} in {dtype} on {lane.device}, subject {_size(held)}; free {_size(free)}"
    if free and needed > free:
        return Check(
            part="memory",
            state=CheckState.MISSING,
            detail=told,
            remedy="fewer layers, or a machine with more",
        )
    return Check(part="memory", state=CheckState.FOUND, detail=told)


def _disk(lane: Lane, oracle: Model) -> Check:
    """Both traces, in f32, and the import of a subject's model that is not in its own format yet."""
    request = _request(lane, oracle)
    dims = oracle.geometry.dims(len(request.tokens))
    traces = 2 * sum(4 * math.prod(canonical_shape(name, dims)) for _, name in request.keys(oracle.geometry))
    path = _subject_path(lane)
    imports = lane.subject is not None and lane.subject.startswith("apr:") and path is not None
    copied = 0
    if imports and path is not None and path.suffix != ".apr":
        copied = sum(file.stat().st_size for file in open_model(path).files)
    free = shutil.disk_usage(Path.cwd()).free
    told = (
        f"traces {_size(traces)} at {len(request.tokens)} tokens, import {_size(copied)}; free {_size(free)}"
    )
    if traces + copied > free:
        return Check(part="disk", state=CheckState.MISSING, detail=told, remedy="free space")
    return Check(part="disk", state=CheckState.FOUND, detail=told)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
