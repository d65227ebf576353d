"""``[tool.apr-falsify]`` of pyproject.toml: sources, severities, and ignores that say why."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.rules import NOTICE, RULES, SEVERITIES
from apr_falsify.errors import UsageError, nearest
from apr_falsify.reading import items, mapping, read_toml, table, text

KNOWN_KEYS = ("contracts", "evidence-dir", "gpu-lane", "ignores", "lanes", "severities", "sources")
"""Every key of ``[tool.apr-falsify]``; some of them only pytest reads."""
_KEYS_OF_AN_IGNORE = ("code", "path", "reason", "subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """Lets be the problems of one code, in files matching ``path``, about ``subject`` if given.

    ``path`` is seen from ``root``, the folder of the settings, or the working directory, or is a file's name.
    """

    code: str
    reason: str
    path: str = "*"
    subject: str = ""
    root: Path = Path()

    def covers(self, problem: Problem) -> bool:
        """Whether it applies to a problem."""
        return (
            problem.code == self.code
            and self.subject in ("", problem.subject)
            and (
                self.path == "*" or any(fnmatch.fnmatch(one, self.path) for one in self._names(problem.path))
            )
        )

    def _names(self, path: str) -> tuple[str, ...]:
        return path, os.path.basename(path), os.path.relpath(path, self.root).replace(os.sep, "/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a project has configured; all empty where it has configured nothing.

    ``root`` is the folder of the pyproject.toml that has the table, ``evidence_dir`` the folder in which the
    project keeps the bundles that its contracts name.
    """

    root: Path | None = None
    evidence_dir: Path | None = None
    contracts: tuple[Path, ...] = ()
    sources: dict[str, Path] = field(default_factory=dict)
    severities: dict[str, str] = field(default_factory=dict)
    ignores: tuple[Ignore, ...] = ()

    def severity(self, code: str) -> str:
        """Severity of a code in this project."""
        return self.severities.get(code, RULES[code].severity)

    def counts(self, problem: Problem) -> bool:
        """Whether a problem is more than a notice, and none that is ignored."""
        return self.severity(problem.code) != NOTICE and not any(one.covers(problem) for one in self.ignores)


def read_settings(start: Path) -> Settings:
    """Read the nearest pyproject.toml that has the table, from ``start`` upwards.

    Raises:
        UsageError: the table names an unknown code or severity, or an ignore gives no reason.

    """
    table, folder = nearest_table(start)
    return Settings() if table is None else _settings(table, folder)


def nearest_table(start: Path) -> tuple[dict[str, Any] | None, Path]:
    """Return ``[tool.apr-falsify]`` of the nearest pyproject.toml from ``start`` upwards, and its folder.

    Raises:
        UsageError: a pyproject.toml on the way cannot be read.

    """
    for folder in (start, *start.parents):
        table = _table(folder / "pyproject.toml")
        if table is not None:
            return table, folder
    return None, start


def project_name(root: Path) -> str:
    """Return the project's name as its pyproject.toml gives it, else that of its folder."""
    try:
        name = table(read_toml(root / "pyproject.toml"), "project").get("name")
    except (OSError, ValueError):
        name = None
    return str(name or root.resolve().name)


def _table(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=path) from None
    found = table(content, "tool").get("apr-falsify")
    return found if isinstance(found, dict) else None


def _settings(said: dict[str, Any], folder: Path) -> Settings:
    where = folder / "pyproject.toml"
    _only(said, KNOWN_KEYS, "[tool.apr-falsify]", where)
    try:
        severities = _texts(said, "severities")
        contracts, evidence = said.get("contracts", []), said.get("evidence-dir")
        contracts = items([contracts] if isinstance(contracts, str) else contracts, "contracts")
        paths = tuple(folder / text(path, "one of contracts") for path in contracts)
        sources = {name: folder / path for name, path in _texts(said, "sources").items()}
        ignores = [mapping(entry, "one of ignores") for entry in items(said.get("ignores", []), "ignores")]
    except ValueError as error:
        raise UsageError(str(error), where=where, expected="[tool.apr-falsify] as README shows it") from None
    for code, severity in severities.items():
        _known(code, where)
        if severity not in SEVERITIES:
            raise UsageError(
                f"severity {severity!r} of {code!r} is unknown", where=where, expected=", ".join(SEVERITIES)
            )
    if evidence is not None and (not isinstance(evidence, str) or not evidence):
        raise UsageError("evidence-dir is no path", where=where, expected='evidence-dir = "evidence"')
    return Settings(
        root=folder,
        evidence_dir=None if evidence is None else folder / evidence,
        contracts=paths,
        sources=sources,
        severities=severities,
        ignores=tuple(_ignore(entry, where) for entry in ignores),
    )


def _texts(said: Mapping[str, Any], key: str) -> dict[str, str]:
    return {name: text(value, f"{key}.{name}") for name, value in mapping(said.get(key, {}), key).items()}


def _only(said: Mapping[str, Any], keys: tuple[str, ...], what: str, where: Path) -> None:
    """Refuse a key that nobody reads: an ignore without the path that was meant lets everything be."""
    for key in said:
        if key not in keys:
            message = f"{what} has no key {key!r}"
            raise UsageError(message, where=where, expected=", ".join(keys), remedy=nearest(key, keys))


def _known(code: str, where: Path) -> None:
    if code not in RULES:
        raise UsageError(f"no rule has the code {code!r}", where=where, remedy=nearest(code, RULES))


def _ignore(entry: Mapping[str, Any], where: Path) -> Ignore:
    _only(entry, _KEYS_OF_AN_IGNORE, "an ignore", where)
    code, reason = str(entry.get("code", "")), str(entry.get("reason", "")).strip()
    _known(code, where)
    if not reason:
        raise UsageError(f"the ignore of {code!r} gives no reason", where=where, expected='reason = "..."')
    path, subject = str(entry.get("path", "*")), str(entry.get("subject", ""))
    return Ignore(code=code, reason=reason, path=path, subject=subject, root=where.parent)
