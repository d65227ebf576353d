"""The published JSON Schema of a contract, and validation against it with ``jsonschema``."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from apr_falsify.contracts.model import Place, place_of
from apr_falsify.contracts.source import Mapping, Sequence, Value

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def schema_text() -> str:
    """Return the packaged schema, as editors are given it."""
    return resources.files("apr_falsify.contracts").joinpath("schema.json").read_text(encoding="utf-8")


@functools.cache
def _validator() -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema_text()))


def _shape(value: Value, depth: int = 0) -> Any:
    """The value with every scalar replaced by one of its kind, below what the schema looks at by nothing."""
    if isinstance(value, Mapping):
        return {str(key): _shape(item, depth + 1) for key, item in value.items()} if depth < 4 else {"_": "x"}
    if isinstance(value, Sequence):
        return [_shape(item, depth + 1) for item in value] if depth < 3 else []
    return None if value is None else ("x" if value else "")


def shape_of(data: Mapping) -> bytes:
    """Digest of a document's shape. The schema asks for types and keys only: equal shapes share a verdict."""
    return hashlib.blake2b(json.dumps(_shape(data)).encode(), digest_size=16).digest()


def violations(data: Mapping) -> Iterator[tuple[Place, str]]:
    """Yield every place where the data has another shape than the schema's, with what was expected."""
    for error in sorted(
        _validator().iter_errors(cast("Any", data)), key=lambda one: [str(part) for part in one.absolute_path]
    ):
        parts = list(error.absolute_path)
        yield _place(data, parts), _message(error)


def _message(error: Any) -> str:
    if error.validator == "anyOf":
        return "has no id"
    if error.validator == "type":
        wanted = error.validator_value
        words = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return f"must be {words}, not {_word(error.instance)}"
    text = str(error.message)
    return text if len(text) < 200 else f"violates {error.validator!r} of the schema"


def _word(value: object) -> str:
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        return "array"
    return "null" if value is None else "string"


def _place(data: Value, parts: list[str | int]) -> Place:
    key, here = "", data
    place = place_of(data, "")
    for part in parts:
        key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}".lstrip(".")
        if isinstance(here, Mapping):
            here = here.get(str(part))
        elif isinstance(here, Sequence) and isinstance(part, int):
            here = here[part]
        place = place_of(here, key, place)
    return place
