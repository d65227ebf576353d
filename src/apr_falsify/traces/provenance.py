"""Where a run comes from: what a reviewer needs to make it again."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.portable import stated_name
from apr_falsify.reading import items, mapping, text, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a trace comes from: what a reviewer needs to make it again.

    Attributes:
        runtime: name of the runtime (``hf``, ``embedded``, ``apr`` ...).
        version: its version, ``unknown`` where it reports none.
        binary_sha256: digest of its binary, where it is one.
        driver: the program that ran it, with version.
        model: the model's name; see :mod:`apr_falsify.portable`.
        model_sha256: digest of the model's weight files.
        prompt: the text, where there was one.
        argmax: id and text of the most likely next token, where the logits were captured.
        dtype: number format of weights and activations.
        device: ``cpu``, ``cuda`` or ``unknown``.
        saved_as: stage -> the number format that it was rounded to when it was saved, where the run itself
            went on with what it had.
        operands: stage -> the number format that products round it to, where it holds more digits.
        arithmetic: how sums are done, in the words of ``arithmetic.py``.
        settings: what the user handed to the runtime beyond its defaults, by name.
        libraries: versions of the libraries that computed it.
        layers: the layers requested, ``None`` where that is not known.
        stages: the stages requested, ``None`` where that is not known.
        unused: names of what a foreign recording holds and no stage was read from.
        absent: stage -> why the runtime gave none although it was requested.
        exit_status: how its process ended, where it was one.
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
    saved_as: Mapping[str, str] = field(default_factory=dict)
    operands: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[int, int] | None = None
    stages: tuple[str, ...] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    exit_status: int | None = None
    unused: tuple[str, ...] = ()
    created: str = ""
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; what earlier versions did not have only where there is any."""
        return {key: value for key, value in asdict(self).items() if key not in _LATER or value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """Read what :meth:`to_json` wrote; keys of a later version are passed over, paths of an earlier cut.

        Raises:
            ValueError: a value of the wrong type, or no runtime.

        """
        known = {
            key: _READERS[key](value, key) for key, value in data.items() if key in cls.__dataclass_fields__
        }
        if "runtime" not in known:
            raise ValueError("the provenance names no runtime")
        if "model" in known:
            known["model"] = stated_name(known["model"], known.get("model_sha256"))
        return cls(**known)


def _optional(read: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda value, name: None if value is None else read(value, name)


def _argmax(value: object, name: str) -> Mapping[str, Any]:
    found = dict(mapping(value, name))
    whole(found.get("id"), f"{name}.id")
    _optional(text)(found.get("text"), f"{name}.text")
    return found


def _texts(value: object, name: str) -> Mapping[str, str]:
    return {key: text(version, f"{name}.{key}") for key, version in mapping(value, name).items()}


def _formats(value: object, name: str) -> Mapping[str, str]:
    found = _texts(value, name)
    unknown = [word for word in found.values() if word not in FORMATS]
    if unknown:
        raise ValueError(f"{name} names the number format {unknown[0]!r}")
    return found


def _layers(value: object, name: str) -> tuple[int, int]:
    first, last = (whole(layer, name) for layer in items(value, name))
    return first, last


def _stages(value: object, name: str) -> tuple[str, ...]:
    return tuple(text(stage, name) for stage in items(value, name))


_LATER = ("saved_as", "operands")

_READERS: Mapping[str, Callable[[object, str], Any]] = {
    "runtime": text,
    "version": text,
    "binary_sha256": _optional(text),
    "driver": text,
    "model": text,
    "model_sha256": _optional(text),
    "prompt": _optional(text),
    "argmax": _optional(_argmax),
    "dtype": text,
    "device": text,
    "arithmetic": text,
    "saved_as": _formats,
    "operands": _formats,
    "settings": _texts,
    "libraries": _texts,
    "layers": _optional(_layers),
    "stages": _optional(_stages),
    "absent": _texts,
    "exit_status": _optional(whole),
    "unused": _stages,
    "created": text,
    "commit": _optional(text),
}
"""Field -> what checks its type; every field has a row."""


def utc_now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
