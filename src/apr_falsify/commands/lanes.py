"""Lanes: named set-ups of ``[tool.apr-falsify.lanes.NAME]``, and what a machine lacks to run one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.errors import AprFalsifyError, UsageError, nearest
from apr_falsify.evidence.facts import CHANGED_LANE, UNNAMED_LANE

EMBEDDED = "embedded"
"""The lane without a name: the checkpoint that the package carries, on the CPU."""

UNNAMED = UNNAMED_LANE

RESERVED = (EMBEDDED, UNNAMED)

_DEVICES = ("cpu", "cuda")
_DTYPES = ("f16", "bf16", "f32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A set-up to measure on.

    Attributes:
        name: its name.
        device: where the oracle runs.
        dtype: the oracle's number format, ``None`` for the device's default.
        oracle: the oracle's model or trace, ``None`` for the subject's own model.
        subject: the subject, ``RUNTIME:PATH``; ``None`` for the embedded runtime.
        prompt: the text, ``None`` for the subject's own or the default.
        layers: the layers, ``None`` for the default.
        tokens: the token ids, where a bare recording does not say them.

    """

    name: str = EMBEDDED
    device: str = "cpu"
    dtype: str | None = None
    oracle: str | None = None
    subject: str | None = None
    prompt: str | None = None
    layers: range | None = None
    tokens: tuple[int, ...] | None = None

    @property
    def is_live(self) -> bool:
        """Whether it is another lane than the embedded default."""
        return self.name != EMBEDDED


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return read


def _layers(value: object) -> range:
    from apr_falsify.model.stages import parse_layers

    return parse_layers(_text(value))


def _tokens(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(one) is not int for one in value):
        raise ValueError("a list of token ids")
    return tuple(value)


KEYS: Mapping[str, Callable[[object], Any]] = {
    "device": _one_of(*_DEVICES),
    "dtype": _one_of(*_DTYPES),
    "oracle": _text,
    "subject": _text,
    "prompt": _text,
    "layers": _layers,
    "tokens": _tokens,
}
"""Key of a lane's table -> what reads its value; a ``ValueError`` says what was expected."""


def read_lanes(tables: object, root: Path) -> dict[str, Lane]:
    """Return the lanes of ``[tool.apr-falsify.lanes]``, by name; their paths are relative to ``root``.

    Raises:
        UsageError: a key that no lane has, a value that it cannot take, or a reserved name.

    """
    where = root / "pyproject.toml"
    if not isinstance(tables, Mapping):
        raise UsageError("lanes is no table", where=where, expected="[tool.apr-falsify.lanes.NAME]")
    return {str(name): _lane(str(name), table, root, where) for name, table in tables.items()}


def _lane(name: str, table: object, root: Path, where: Path) -> Lane:
    place = f"{where}: [tool.apr-falsify.lanes.{name}]"
    if name in RESERVED:
        raise UsageError(f"the name {name!r} is reserved", where=place, remedy="give the lane another name")
    if not isinstance(table, Mapping):
        raise UsageError("is no table", where=place, expected=", ".join(KEYS))
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(
                f"a lane has no key {key!r}", where=place, expected=", ".join(KEYS), remedy=nearest(key, KEYS)
            )
        values[key] = _value(key, value, place)
    for key in ("oracle", "subject"):
        if key in values:
            values[key] = rooted(values[key], root)
    return Lane(name=name, **values)


def lane_of(lanes: Mapping[str, Lane], name: str, where: object) -> Lane:
    """Return the lane of that name.

    Raises:
        UsageError: there is none; the nearest is offered.

    """
    if name not in lanes:
        raise UsageError(
            f"no lane {name!r}",
            where=where,
            expected=", ".join(lanes) or f"a table [tool.apr-falsify.lanes.{name}]",
            remedy=nearest(name, lanes),
        )
    return lanes[name]


def _value(key: str, value: object, place: str) -> Any:
    try:
        return KEYS[key](value)
    except AprFalsifyError as error:
        raise UsageError(f"{key}: {error.what}", where=place, expected=error.expected) from error
    except ValueError as error:
        raise UsageError(f"{key} is {value!r}", where=place, expected=str(error)) from error


def rooted(spec: str, root: Path) -> str:
    """Return ``spec`` (a path, ``RUNTIME:PATH`` or hub id); a relative path that exists becomes absolute."""
    runtime, colon, path = spec.rpartition(":")
    if path and os.path.exists(root / path):  # the method fails on a name that is too long
        return f"{runtime}{colon}{(root / path).resolve()}"
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingNeed:
    """One thing that a lane needs and this machine has not.

    Attributes:
        what: what is missing, in a sentence.
        remedy: the command that gets it.

    """

    what: str
    remedy: str


def missing_for(lane: Lane) -> tuple[MissingNeed, ...]:
    """Return everything that ``lane`` needs and that is not here; nothing is run or fetched."""
    return tuple(one for check in (_torch, _cuda, _oracle, _subject) for one in check(lane))


_ORACLE_EXTRA = "pip install 'apr-falsify[oracle]'"


def _is_trace(spec: str) -> bool:
    return (Path(spec) / "trace.json").exists()  # trace.is_trace would import NumPy into every pytest session


def _torch(lane: Lane) -> Iterator[MissingNeed]:
    if lane.oracle is not None and _is_trace(lane.oracle):
        return
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            yield MissingNeed(what=f"{name} is not installed; the oracle needs it", remedy=_ORACLE_EXTRA)


def _cuda(lane: Lane) -> Iterator[MissingNeed]:
    if lane.device != "cuda":
        return
    if importlib.util.find_spec("torch") is None:
        yield MissingNeed(what="CUDA is not available: torch is not installed", remedy=_ORACLE_EXTRA)
        return
    from apr_falsify.errors import DeviceError
    from apr_falsify.oracle.libraries import device_named

    try:
        device_named("cuda")
    except DeviceError as error:
        yield MissingNeed(
            what=f"{error.what}; it needs {error.expected}",
            remedy="nvidia-smi (is there a driver?), then pip install torch in its build for CUDA",
        )


def _oracle(lane: Lane) -> Iterator[MissingNeed]:
    if lane.name == UNNAMED and lane.oracle is None and lane.subject is None:
        yield MissingNeed(
            what="no model is named, and no lane",
            remedy='gpu-lane = "NAME" in [tool.apr-falsify], or --lane=NAME, or --oracle-model and --subject',
        )
    elif lane.oracle is None:
        if lane.subject is not None and not lane.subject.startswith("embedded:"):
            name = lane.name.removesuffix(CHANGED_LANE)
            yield MissingNeed(
                what="no oracle model is named",
                remedy=f"--oracle-model=MODEL, or oracle = ... in [tool.apr-falsify.lanes.{name}]",
            )
    elif not Path(lane.oracle).exists():
        from apr_falsify.oracle.hub import local_copy
        from apr_falsify.portable import is_hub_id

        if not is_hub_id(lane.oracle):
            yield MissingNeed(
                what=f"the oracle's model {lane.oracle} does not exist", remedy="--oracle-model=MODEL"
            )
        elif local_copy(lane.oracle) is None:
            yield MissingNeed(
                what=f"the oracle's model {lane.oracle} is not on this machine",
                remedy=f"hf download {lane.oracle}, or --oracle-model=DIR",
            )


_PROGRAMS: Mapping[str, tuple[str, str]] = {"apr": ("apr", "cargo install apr-cli")}
"""Runtime -> its program, and the command that installs it."""


def _subject(lane: Lane) -> Iterator[MissingNeed]:
    if lane.subject is None:
        return
    from apr_falsify.commands.specs import split_subject

    runtime, _, _ = lane.subject.partition(":")
    program, remedy = _PROGRAMS.get(runtime, ("", ""))
    if program and shutil.which(program) is None:
        yield MissingNeed(what=f"no program {program} on PATH", remedy=remedy)
    try:
        _, path = split_subject(lane.subject)
    except AprFalsifyError as error:
        yield MissingNeed(what=error.what, remedy=f"--subject={error.expected}")
        return
    if not path.exists():
        yield MissingNeed(
            what=f"the subject's model {path} does not exist", remedy=f"--subject={runtime}:PATH"
        )
