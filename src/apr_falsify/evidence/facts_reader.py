"""Reading ``bundle.json``: what :meth:`Facts.to_json` wrote, with every value of the type it should have."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

from apr_falsify.contracts.claim import BOUND_FIELDS
from apr_falsify.evidence.facts import SCHEMA, Bound, Facts, LaneFacts, Side, Sources
from apr_falsify.evidence.outcome import Outcome, TestRecord
from apr_falsify.reading import items, mapping, text, whole

_DIGEST = re.compile(r"[0-9a-f]{64}")


class NewerVersionError(ValueError):
    """The file is of a schema that this version does not know."""


def read_facts(data: object) -> Facts:
    """Read the object of schema ``apr-falsify/bundle/v1``; keys of a later version are passed over.

    Raises:
        NewerVersionError: another schema.
        ValueError: a value is missing, or of the wrong type.

    """
    found = mapping(data, "it")
    schema = found.get("schema")
    if schema != SCHEMA:
        raise NewerVersionError(f"its schema is {schema!r:.80}, not {SCHEMA!r}")
    missing = [name for name in _READERS if name not in found]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    return Facts(**{name: read(found[name], name) for name, read in _READERS.items()})


def time_of(created: str) -> datetime.datetime:
    """Return a time that a bundle states.

    Raises:
        ValueError: it is no ISO 8601 time with an offset from UTC.

    """
    time = datetime.datetime.fromisoformat(created)
    if time.tzinfo is None:
        raise ValueError(f"{created!r} has no offset from UTC")
    return time


def _digest(value: object, name: str) -> str:
    found = text(value, name)
    if not _DIGEST.fullmatch(found):
        raise ValueError(f"{name} is {found!r:.80}, not a sha256 in lower-case hexadecimal")
    return found


def _optional(read: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda value, name: None if value is None else read(value, name)


def _texts(value: object, name: str) -> dict[str, str]:
    return {key: text(one, f"{name}.{key}") for key, one in mapping(value, name).items()}


def _side(value: object, name: str) -> Side:
    found = mapping(value, name)
    digests = {key: _optional(_digest)(found.get(key), f"{name}.{key}") for key in _SIDE_DIGESTS}
    words = {key: text(found[key], f"{name}.{key}") for key in _SIDE_WORDS if key in found}
    if "runtime" not in words:
        raise ValueError(f"{name} names no runtime")
    recorded = found.get("recorded", False)
    if not isinstance(recorded, bool):
        raise ValueError(f"{name}.recorded is {recorded!r:.80}, neither true nor false")
    return Side(**words, **digests, recorded=recorded)


_SIDE_WORDS = ("runtime", "version", "device", "dtype", "model")
_SIDE_DIGESTS = ("model_sha256", "binary_sha256")


def _lane(value: object, name: str) -> LaneFacts:
    found = mapping(value, name)
    return LaneFacts(
        name=text(found.get("name"), f"{name}.name"),
        prompt=_optional(text)(found.get("prompt"), f"{name}.prompt"),
        tokens=tuple(whole(one, "a token") for one in items(found.get("tokens", ()), f"{name}.tokens")),
        layers=_optional(_layers)(found.get("layers"), f"{name}.layers"),
        oracle=_optional(_side)(found.get("oracle"), f"{name}.oracle"),
        subject=_optional(_side)(found.get("subject"), f"{name}.subject"),
    )


def _layers(value: object, name: str) -> tuple[int, int]:
    layers = [whole(one, name) for one in items(value, name)]
    if len(layers) != 2:
        raise ValueError(f"{name} has {len(layers)} values, not 2")
    return layers[0], layers[1]


def _bound(value: object, name: str) -> Bound:
    found = mapping(value, name)
    functions = mapping(found.get("functions"), f"{name}.functions")
    return Bound(
        functions={key: _digest(one, f"{name}.functions.{key}") for key, one in functions.items()},
        unbound=_texts(found.get("unbound"), f"{name}.unbound"),
    )


def _sources(value: object, name: str) -> Sources:
    found = mapping(value, name)
    files = items(found.get("uncommitted", ()), f"{name}.uncommitted")
    return Sources(
        project=text(found.get("project"), f"{name}.project"),
        commit=_optional(text)(found.get("commit"), f"{name}.commit"),
        uncommitted=tuple(text(one, f"{name}.uncommitted") for one in files),
    )


def _tests(value: object, name: str) -> tuple[TestRecord, ...]:
    return tuple(TestRecord.from_json(mapping(one, name)) for one in items(value, name))


def _outcome(value: object, name: str) -> Outcome:
    return Outcome.from_json(mapping(value, name))


def _created(value: object, name: str) -> str:
    created = text(value, name)
    time_of(created)
    return created


def _claim(value: object, name: str) -> Mapping[str, Any]:
    """Return the bound fields in the order of the table; a bundle has them in that of the alphabet."""
    found = mapping(value, name)
    known = {key: found[key] for key in BOUND_FIELDS if key in found}
    return {**known, **found}


_READERS: Mapping[str, Callable[[object, str], Any]] = {
    "falsifier": text,
    "contract": text,
    "contract_version": text,
    "contract_path": text,
    "claim": _claim,
    "claim_sha256": _digest,
    "outcome": _outcome,
    "tests": _tests,
    "lane": _lane,
    "bound": _bound,
    "sources": _sources,
    "environment": _texts,
    "created": _created,
    "tool": text,
}
"""Field of :class:`Facts` -> what reads it; every field has a row."""
