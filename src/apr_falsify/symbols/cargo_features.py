"""The features of a package, and what it asks of the packages that it depends on.

Source: the Cargo book, "Features" and "Specifying Dependencies".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apr_falsify.reading import table


def texts_of(value: object) -> list[str]:
    """Return the texts of a list; of anything else, none."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def feature_table(manifest: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the features of a package, with the implicit ones of optional dependencies."""
    found = {str(name): tuple(texts_of(value)) for name, value in table(manifest, "features").items()}
    hidden = {
        one.removeprefix("dep:") for values in found.values() for one in values if one.startswith("dep:")
    }
    for name, said in _dependencies(manifest):
        if said.get("optional") is True and name not in hidden:
            found.setdefault(name, ())
    return found


_TABLES = ("dependencies", "dev-dependencies", "build-dependencies")


def _dependencies(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    places = [manifest, *(one for one in table(manifest, "target").values() if isinstance(one, dict))]
    for place in places:
        for kind in _TABLES:
            for name, said in table(place, kind).items():
                yield str(name), said if isinstance(said, dict) else {}


def requested_features(manifest: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return each package that a manifest depends on, with the features that it asks of it."""
    return [
        (str(said.get("package", name)), texts_of(said.get("features")))
        for name, said in _dependencies(manifest)
    ]


def wanted_of(manifest: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a package asks of others by itself, and by any of its own features (``engine/gpu``)."""
    passed: dict[str, list[str]] = {}
    for values in table(manifest, "features").values():
        for one in texts_of(values):
            name, slash, feature = one.partition("/")
            passed.setdefault(name.removesuffix("?"), []).extend([feature] if slash else [])
    for name, said in _dependencies(manifest):
        yield str(said.get("package", name)), (*texts_of(said.get("features")), *passed.get(name, ()))
