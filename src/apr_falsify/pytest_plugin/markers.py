"""Markers: registered from contracts, and what a test that carries some of them decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from apr_falsify.contracts.claim import Claim, read_claims
from apr_falsify.contracts.discover import discover
from apr_falsify.contracts.markers import PREFIX, marker_of
from apr_falsify.errors import ContractError, nearest
from apr_falsify.evidence.outcome import Level, Role
from apr_falsify.pytest_plugin.options import SessionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A falsifier that a test decides.

    Attributes:
        falsifier: its id.
        role: what the test decides of it.
        level: where the test measures.

    """

    falsifier: str
    role: Role
    level: Level


def claims_by_marker(options: SessionOptions) -> dict[str, Claim]:
    """Return the claims of every configured contract, by their marker.

    Raises:
        ContractError: a contract that cannot be read, or two falsifiers of one marker.
        UsageError: a folder that is not there.

    """
    found: dict[str, Claim] = {}
    for path in discover(options.contracts) if options.contracts else ():
        for claim in read_claims(path):
            other = found.setdefault(marker_of(claim.falsifier), claim)
            if other is not claim:
                raise ContractError(
                    f"{claim.falsifier} and {other.falsifier} give one marker, {marker_of(claim.falsifier)}",
                    where=path,
                    expected=f"ids that differ in letters and digits; the other is in {other.path}",
                )
    return found


def register(config: pytest.Config, claims: Mapping[str, Claim]) -> None:
    """Make pytest know the marker of every claim."""
    for marker, claim in claims.items():
        rule = " ".join(str(claim.fields.get("rule", "")).split())
        config.addinivalue_line(
            "markers", f"{marker}(role='prediction', level='algorithm'): {claim.falsifier}: {rule}"
        )


def carried_by(node: pytest.Item, claims: Mapping[str, Claim]) -> tuple[Carried, ...]:
    """Return the falsifiers that a test decides; of a marker that it bears twice the closest counts.

    Raises:
        pytest.Collector.CollectError: a marker of no falsifier, or one with other arguments.

    """
    found: dict[str, Carried] = {}
    for mark in node.iter_markers():
        if mark.name in claims:
            if mark.name not in found:
                found[mark.name] = _carried(mark, claims[mark.name], node.nodeid)
        elif mark.name.startswith(PREFIX):
            raise pytest.Collector.CollectError(f"{node.nodeid}: {unknown(mark.name, claims)}")
    return tuple(found.values())


def unknown(marker: str, claims: Mapping[str, Claim]) -> str:
    """Say that no contract has a falsifier of ``marker``, and which comes nearest."""
    hint = nearest(marker, claims)
    near = next((f" ({claims[name].falsifier})" for name in claims if f"'{name}'" in hint), "")
    return f"no contract has a falsifier of the marker {marker!r}" + (f"; {hint}{near}" if hint else "")


_ARGUMENTS: Mapping[str, type[Role] | type[Level]] = {"role": Role, "level": Level}


def _carried(mark: pytest.Mark, claim: Claim, where: str) -> Carried:
    problem = next(_problems(mark), None)
    if problem is not None:
        raise pytest.Collector.CollectError(f"{where}: the marker {mark.name} {problem}")
    return Carried(
        falsifier=claim.falsifier,
        role=Role(mark.kwargs.get("role", Role.PREDICTION)),
        level=Level(mark.kwargs.get("level", Level.ALGORITHM)),
    )


def _problems(mark: pytest.Mark) -> Iterator[str]:
    if mark.args:
        yield f"takes no {mark.args[0]!r}; it takes {' and '.join(f'{name}=' for name in _ARGUMENTS)}"
    for name, value in mark.kwargs.items():
        if name not in _ARGUMENTS:
            yield f"takes no {name}=; it takes {' and '.join(f'{name}=' for name in _ARGUMENTS)}"
        elif value not in list(_ARGUMENTS[name]):
            known = ", ".join(repr(one.value) for one in _ARGUMENTS[name])
            yield f"takes no {name}={value!r}; it takes {known}"
