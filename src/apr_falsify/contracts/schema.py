"""The published JSON Schema of a contract, and validation against it with ``jsonschema``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from apr_falsify.contracts.model import place_of
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Check = Callable[[Value], bool]
_TYPES = {"object": Mapping, "array": Sequence, "string": Text, "null": type(None)}
_ANNOTATIONS = frozenset(("$schema", "$id", "$defs", "title", "description"))


def schema_text() -> str:
    """Return the packaged schema, as editors are given it."""
    return Path(__file__).with_name("schema.json").read_text(encoding="utf-8")


@functools.cache
def _validator() -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema_text()))


def accepts(data: Mapping) -> bool:
    """Whether the schema certainly accepts a document; of another, ``violations`` tells what is wrong.

    Importing ``jsonschema`` costs as much as validating a hundred contracts: it is asked where this says no.
    """
    return _check_of_document()(data)


@functools.cache
def _check_of_document() -> Check:
    schema = json.loads(schema_text())
    return _check_of(schema, schema["$defs"])


def _check_of(schema: dict[str, Any], definitions: dict[str, Any]) -> Check:
    """Turn a schema into a check; what it does not know is never certain."""
    kinds = schema.get("type", list(_TYPES))
    types = {_TYPES.get(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)}
    checks = [_KEYWORDS[key](schema[key], definitions) for key in schema if key in _KEYWORDS]
    if not schema.keys() <= _KEYWORDS.keys() | _ANNOTATIONS | {"type"}:
        return lambda value: False
    if not checks:
        return lambda value: type(value) in types
    return lambda value: type(value) in types and all(check(value) for check in checks)


def _of_properties(schemas: dict[str, Any], definitions: dict[str, Any]) -> Check:
    checks = {name: _check_of(schema, definitions) for name, schema in schemas.items()}
    present = checks.keys()
    return lambda value: (
        type(value) is not Mapping or all(checks[name](value[name]) for name in present & value.keys())
    )


def _of_others(schema: dict[str, Any], definitions: dict[str, Any]) -> Check:
    """``additionalProperties``, also of those that are named: stricter, so that a yes is certain."""
    check = _check_of(schema, definitions)
    return lambda value: type(value) is not Mapping or all(map(check, value.values()))


def _of_pattern(pattern: str, definitions: dict[str, Any]) -> Check:
    search = re.compile(pattern).search
    return lambda value: type(value) is not Text or search(value) is not None


def _of_items(schema: dict[str, Any], definitions: dict[str, Any]) -> Check:
    check = _check_of(schema, definitions)
    return lambda value: type(value) is not Sequence or all(map(check, value))


def _of_any(schemas: list[dict[str, Any]], definitions: dict[str, Any]) -> Check:
    checks = [_check_of(schema, definitions) for schema in schemas]
    return lambda value: any(check(value) for check in checks)


_KEYWORDS: dict[str, Callable[[Any, dict[str, Any]], Check]] = {
    "properties": _of_properties,
    "additionalProperties": _of_others,
    "items": _of_items,
    "pattern": _of_pattern,
    "anyOf": _of_any,
    "$ref": lambda name, definitions: _check_of(definitions[name.rpartition("/")[2]], definitions),
    "required": lambda names, _: lambda value: type(value) is not Mapping or value.keys() >= set(names),
    "minProperties": lambda least, _: lambda value: type(value) is not Mapping or len(value) >= least,
    "minLength": lambda least, _: lambda value: type(value) is not Text or len(value) >= least,
}


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
