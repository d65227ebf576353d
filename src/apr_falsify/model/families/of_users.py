"""The families that users' files brought, beside the table; ``operators/family_file.py`` reads the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.model.family import Family
from apr_falsify.model.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFile:
    """A file of a user that was read.

    Attributes:
        where: the file, as the user named it.
        digest: the sha256 of its content.
        families: what it defines.
        check: checks what a graph asks of the rooms above this one: that its operators are known.

    """

    where: Path
    digest: str
    families: tuple[Family, ...]
    check: Callable[[Graph], None]


_files: dict[Path, FamilyFile] = {}
"""Resolved path -> what was read there."""


def file_at(path: Path) -> FamilyFile | None:
    """Return what was read at the resolved ``path``."""
    return _files.get(path)


def keep(path: Path, file: FamilyFile) -> None:
    """Take ``file`` in; it replaces what was read there before."""
    _files[path] = file


def files_but(path: Path) -> tuple[FamilyFile, ...]:
    """Return the files that were read elsewhere than at the resolved ``path``."""
    return tuple(file for place, file in _files.items() if place != path)


def families_of_users() -> tuple[Family, ...]:
    """Return the families of all files that were read."""
    return tuple(family for file in _files.values() for family in file.families)


def file_of(name: str) -> FamilyFile | None:
    """Return the file that brought the family ``name``, ``None`` for one of the table."""
    named = (file for file in _files.values() for family in file.families if family.name == name)
    return next(named, None)
