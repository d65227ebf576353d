"""The one model that every dialect of contract is read into.

Source of the fields: ``domain.md`` section 6 and 44 contracts written by others, whose shapes differ:
blocks go by four names, evidence is a mapping or a list, a status stands inside it or beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.contracts.evidence_keys import BLOCK, LIVE, TEST, keys_read_as
from apr_falsify.contracts.names import BuildTarget, PathName
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.pytest_command import PytestRun
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.symbols.states import quickly_pickled

FALSIFIER_BLOCKS = (
    "falsification_tests", "falsification", "falsifiers", "gates", "falsification_gates",
    "falsification_conditions",
)  # fmt: skip
STATUS_KEYS = ("status", "discharge_status", "verdict")
_EVIDENCE_KEYS = tuple(key for key in keys_read_as(BLOCK, LIVE) if key != "evidence")  # that is a bundle
TEST_KEYS = keys_read_as(TEST)
_ORIGINS = ("repo", "repository", "source", "crate")
_SIBLING_KEYS = ("depends_on", "siblings", "sibling", "parent_contract", "extends")
_SEMVER = r"\d+\.\d+\.\d+(?:-[\w.]+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One thing a contract says exists.

    ``kind`` is file, symbol, pytest, run (a pytest that chooses by name), marker, cargo, target (of a build
    tool), harness (of Kani), test (one named without its file), binding, theorem (see ``proofs``), or loose
    (see ``prose``). ``paths`` are the files it is said to be in; none means anywhere in the tree.
    ``expected_absent`` marks what belongs to a falsifier that itself says something is missing. ``role``
    tells evidence from reference.
    """

    kind: str
    text: str
    place: Place
    name: str = ""
    paths: tuple[PathName, ...] = ()
    cargo: CargoTest | None = None
    run: PytestRun | None = None
    target: BuildTarget | None = None
    expected_absent: bool = False
    role: str = "evidence"


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """Another contract that this one relies on, with the version and status it is cited at.

    ``origin`` is the repository it is said to be of; empty where nothing is said.
    """

    name: str
    place: Place
    version: str = ""
    status: str = ""
    must_exist: bool = True
    origin: str = ""


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class CitedId:
    """An id that a contract cites, and where."""

    id: str
    place: Place


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundEquation:
    """An equation of a contract that a registry binds to a function, and where."""

    contract: str
    equation: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Falsifier:
    """One falsification test: its id, its status word as written, and its data."""

    id: str
    place: Place
    data: Mapping
    status: str = ""
    status_place: Place | None = None
    evidence: tuple[tuple[str, Value], ...] = ()  # (key path, value) of each evidence block


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One contract, whatever its dialect; ``name`` is how others cite it."""

    path: str
    data: Mapping
    id: str
    aliases: tuple[str, ...]
    version: str
    status: str
    description: str
    falsifiers: tuple[Falsifier, ...]
    siblings: tuple[Sibling, ...]

    @property
    def metadata(self) -> Mapping:
        """The metadata block; empty where there is none."""
        block = self.data.get("metadata")
        return block if isinstance(block, Mapping) else Mapping()


def text_of(mapping: Mapping, key: str) -> str:
    """A scalar as text; empty where it is absent or no scalar."""
    value = mapping.get(key)
    return str(value) if isinstance(value, Text) else ""


def place_of(value: Value, key: str, fallback: Place | None = None) -> Place:
    """Where ``value`` stands; a null has no place of its own and takes its parent's."""
    if value is None:
        return Place(
            line=fallback.line if fallback else 1, column=fallback.column if fallback else 1, key=key
        )
    return Place(line=value.line, column=value.column, key=key)


def entries(value: Value, key: str) -> Iterator[tuple[str, Value]]:
    """A list's items, or the one value standing where a list could; with their key paths."""
    if isinstance(value, Sequence):
        for at, item in enumerate(value):
            yield f"{key}[{at}]", item
    elif value is not None:
        yield key, value


def read_contract(path: str, data: Mapping) -> Contract:
    """Read any dialect. Never fails: what has the wrong shape is left to the schema to report."""
    metadata = data.get("metadata")
    meta = metadata if isinstance(metadata, Mapping) else Mapping()
    stem = PurePosixPath(path).stem
    own = text_of(meta, "id") or text_of(data, "id") or text_of(data, "contract") or text_of(meta, "name")
    aliases = (stem, stem.rpartition("__")[2], own, text_of(data, "name"), text_of(data, "contract"))
    return Contract(
        path=path,
        data=data,
        id=own or stem,
        aliases=tuple(dict.fromkeys(alias for alias in aliases if alias)),
        version=text_of(meta, "version") or text_of(data, "version"),
        status=text_of(meta, "status") or text_of(data, "status"),
        description=text_of(meta, "description") or text_of(data, "description"),
        falsifiers=tuple(_falsifiers(data)),
        siblings=tuple(_siblings(data, meta)),
    )


def _falsifiers(data: Mapping) -> Iterator[Falsifier]:
    for block in FALSIFIER_BLOCKS:
        value = data.get(block)
        if isinstance(value, Mapping):
            for name, item in value.items():
                if isinstance(item, Mapping):
                    yield _falsifier(item, f"{block}.{name}", str(name))
        elif isinstance(value, Sequence):
            for at, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield _falsifier(item, f"{block}[{at}]", "")


def _falsifier(data: Mapping, key: str, name: str) -> Falsifier:
    evidence = tuple((f"{key}.{one}", data[one]) for one in _EVIDENCE_KEYS if data.get(one) is not None)
    status, status_place = _status(data, key)
    return Falsifier(
        id=text_of(data, "id") or name,
        place=place_of(data, key),
        data=data,
        status=status,
        status_place=status_place,
        evidence=evidence,
    )


def _status(data: Mapping, key: str) -> tuple[str, Place | None]:
    """The status beside the evidence, else inside it."""
    inside = data.get("algorithm_evidence")
    holders = [(data, key)]
    if isinstance(inside, Mapping):
        holders.append((inside, f"{key}.algorithm_evidence"))
    for holder, where in holders:
        for name in STATUS_KEYS:
            value = holder.get(name)
            if isinstance(value, Text) and value.strip():
                return str(value), place_of(value, f"{where}.{name}")
    return "", None


def _siblings(data: Mapping, meta: Mapping) -> Iterator[Sibling]:
    for holder, prefix in ((data, ""), (meta, "metadata.")):
        for name in _SIBLING_KEYS:
            for key, value in entries(holder.get(name), prefix + name):
                yield from _sibling(value, key, must_exist=True)
        for key, value in entries(holder.get("references"), prefix + "references"):
            if isinstance(value, Text) and re.match(r"^\s*`?contracts/[\w./-]+\.ya?ml", value):
                yield from _sibling(value, key, must_exist=False)


def _sibling(value: Value, key: str, *, must_exist: bool) -> Iterator[Sibling]:
    if isinstance(value, Mapping):
        name = next((text_of(value, one) for one in ("id", "contract", "name") if text_of(value, one)), "")
        version, status = text_of(value, "version"), text_of(value, "status")
        told = next((text_of(value, one) for one in _ORIGINS if text_of(value, one)), "")
        origin = told.rstrip("/").rpartition("/")[2]
    elif isinstance(value, Text):
        match = re.match(
            r"^\s*`?(?:[A-Za-z][\w-]*:)?(?:[\w./-]*/)?([A-Za-z][\w.-]*?)(?:\.ya?ml)?`?(?=[\s(,;:@]|$)(.*)$",
            value,
            re.DOTALL,
        )
        name, rest = (match[1], match[2]) if match else ("", "")
        version, status = _cited_version(rest), _cited_status(rest)
        origin = _cited_origin(value, rest)
        if (
            match
            and rest.strip()
            and not rest.lstrip().startswith(
                ("(", "v", "@", "—", "-", "\u2013", ",", ">", "FUNC", "PART", "BLOCK")
            )
        ):
            return  # a sentence, not a name with a remark
    else:
        return
    if name and ("-" in name or "_" in name):
        yield Sibling(
            name=name,
            place=place_of(value, key),
            version=version,
            status=status,
            must_exist=must_exist,
            origin=origin,
        )


def _cited_origin(text: str, rest: str) -> str:
    """The repository in ``realizar/contracts/x-v1.yaml``, ``realizar:x-v1``, ``x-v1 (paiml/realizar)``."""
    before = re.match(
        r"^\s*`?(?:\.\./)*(?!crates/|packages/)(?:[\w-]+/)?([A-Za-z][\w-]*)(?:/contracts/|:(?![\s/]))", text
    )
    after = re.search(
        r"\(\s*(?:(?:in|from|of|see)\s+)?(?:the\s+)?(?:[\w-]+/([\w-]+)|([\w-]+)\s+(?:repo|repository|crate))\b",
        rest,
    )
    if before:
        return str(before[1])
    return str(after[1] or after[2]) if after else ""


def _cited_version(rest: str) -> str:
    found = re.findall(rf"(?:\bv|@|>=\s*v?)({_SEMVER})", rest)
    return str(found[-1]) if found else ""


def _cited_status(rest: str) -> str:
    match = re.search(r"\b(FUNCTIONAL|PARTIAL_ALGORITHM_LEVEL|BLOCKER_FIXTURE_ABSENT|DISCHARGED)\b", rest)
    return match[1] if match else ""
