"""What evidence binds of a contract: the claim of one falsifier, and its digest.

The claim is what a person would have to believe anew if it changed: id, rule, prediction, test, algorithm
evidence, thresholds and discharge. Status, version, changelog and siblings are not part of it, so that a
promotion leaves the evidence of every other falsifier as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.contracts.files import read_bytes, shown_path
from apr_falsify.contracts.model import Contract, Falsifier, read_contract, text_of
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.source import Mapping as YamlMapping
from apr_falsify.contracts.source import Sequence, Text, Value, parse
from apr_falsify.contracts.statuses import rung_of
from apr_falsify.errors import ContractError, nearest

BOUND_FIELDS = ("id", "rule", "prediction", "test", "algorithm_evidence", "thresholds", "discharge")
"""The fields of a falsifier that its claim holds; ``discharge`` is the contract's where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a contract says of a falsifier's bundle.

    Attributes:
        bundle: its path, relative to the project.
        statement_sha256: digest of its ``statement.json``; empty where the contract gives none.

    """

    bundle: str
    statement_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One falsifier's claim.

    Attributes:
        falsifier: its id.
        contract: the contract's id.
        version: the contract's version.
        path: the contract's file.
        rung: the rung that its status claims, empty where it claims none.
        fields: the bound fields, as plain JSON values.
        pin: what the contract says of its bundle, ``None`` where it names none.
        keys: ids of the Ed25519 public keys that the contract lists, to the key (base64 of 32 bytes).

    """

    falsifier: str
    contract: str
    version: str
    path: Path
    rung: str
    fields: Mapping[str, Any]
    pin: Pin | None
    keys: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the bound fields."""
        return hashlib.sha256(canonical_json(self.fields)).hexdigest()

    @property
    def discharge(self) -> Mapping[str, Any] | None:
        """What a bundle must come from before the falsifier is FUNCTIONAL; ``None`` where it says nothing."""
        block = self.fields.get("discharge")
        return block if isinstance(block, Mapping) else None


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of ``value``: keys sorted, no blanks, UTF-8 (RFC 8785, texts and lists)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Return the claims of every falsifier of the contract at ``path``.

    Raises:
        ContractError: it cannot be read, or is no contract.

    """
    raw = read_bytes(path)
    source = raw if isinstance(raw, Problem) else parse(shown_path(path), raw)
    problems = (source,) if isinstance(source, Problem) else source.problems
    problems = tuple(one for one in problems if one.code != "byte-order-mark")  # read all the same
    if problems:
        first = problems[0]
        raise ContractError(first.message, where=f"{path}:{first.line}", expected=first.hint)
    assert not isinstance(source, Problem)
    if not isinstance(source.data, YamlMapping):
        raise ContractError("is no contract", where=path, expected="a mapping with falsification_tests")
    contract = read_contract(shown_path(path), source.data)
    return tuple(_claim(one, contract, path) for one in contract.falsifiers)


def read_claim(path: Path, falsifier: str) -> Claim:
    """Return the claim of one falsifier of the contract at ``path``.

    Raises:
        ContractError: the contract cannot be read, or has no such falsifier, or several.

    """
    claims = read_claims(path)
    found = [claim for claim in claims if claim.falsifier == falsifier]
    if not found:
        ids = [claim.falsifier for claim in claims]
        raise ContractError(
            f"has no falsifier {falsifier!r}",
            where=path,
            expected=", ".join(ids),
            remedy=nearest(falsifier, ids),
        )
    if len(found) > 1:
        raise ContractError(
            f"the id {falsifier!r} stands {len(found)} times",
            where=path,
            remedy="give each falsifier an id of its own",
        )
    return found[0]


def _claim(one: Falsifier, contract: Contract, path: Path) -> Claim:
    fields = {name: plain(one.data[name]) for name in BOUND_FIELDS if one.data.get(name) is not None}
    shared = contract.data.get("discharge")
    if shared is not None:
        fields.setdefault("discharge", plain(shared))
    return Claim(
        falsifier=one.id,
        contract=contract.id,
        version=contract.version,
        path=path,
        rung=rung_of(one.status) or "",
        fields=fields,
        pin=_pin(one.data.get("evidence")),
        keys=_keys(contract.data.get("evidence_keys")),
    )


def _pin(block: Value) -> Pin | None:
    if not isinstance(block, YamlMapping) or not text_of(block, "bundle"):
        return None
    return Pin(bundle=text_of(block, "bundle"), statement_sha256=text_of(block, "statement_sha256"))


def _keys(block: Value) -> dict[str, str]:
    if not isinstance(block, YamlMapping):
        return {}
    return {str(name): str(key) for name, key in block.items() if isinstance(key, Text)}


def plain(value: Value) -> Any:
    """Return a value of a contract without its places; every scalar is a text, as it was read."""
    if isinstance(value, YamlMapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return None if value is None else str(value)
