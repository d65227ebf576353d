"""The quick check of a document's shape agrees with ``jsonschema``, whatever stands where."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from apr_falsify.contracts.schema import accepts, violations
from apr_falsify.contracts.source import Mapping, parse

CONTRACT: dict[str, Any] = {
    "metadata": {"id": "C", "version": "1.0.0", "author": None, "references": ["a"], "description": "d"},
    "description": "d",
    "equations": {"e": {"formula": "f"}},
    "proof_obligations": [{"type": "t"}],
    "discharge": {"lane": "parity"},
    "thresholds": {"cosine": 0.999},
    "evidence_keys": {"lane": "A" * 43 + "="},
    "falsification_tests": [
        {
            "id": "F",
            "rule": "r",
            "test": "t",
            "status": "FUNCTIONAL",
            "algorithm_evidence": {"file_paths": ["a.py"], "notes": "n", "status": "s"},
            "discharge": {"lane": "parity"},
            "thresholds": ["0.999"],
            "evidence": {"bundle": "b", "statement_sha256": "0a" * 32},
        }
    ],
    "gates": {"one": {"name": "g"}},
}
OTHERS: tuple[object, ...] = (None, "x", "", [], ["x"], {}, {"k": "v"}, [{}], [{"id": ""}], [{"k": "v"}])


def read(data: object) -> Mapping:
    document = parse("c.yaml", json.dumps(data).encode()).data
    assert isinstance(document, Mapping)
    return document


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*way, key)
        yield from places(value[key], (*way, key))


def test_a_contract_is_accepted() -> None:
    assert accepts(read(CONTRACT))


@pytest.mark.parametrize("place", list(places(CONTRACT)), ids=str)
def test_the_quick_check_agrees_with_the_schema(place: tuple[Any, ...]) -> None:
    *way, last = place
    for other in OTHERS:
        changed = copy.deepcopy(CONTRACT)
        holder: Any = changed
        for key in way:
            holder = holder[key]
        holder[last] = other
        document = read(changed)
        assert accepts(document) == (not list(violations(document))), other


@pytest.mark.parametrize("digest", ["0a" * 31, "0A" * 32, "0a" * 32 + "0", "sha256:" + "0a" * 32])
def test_a_digest_is_64_small_hexadecimal_digits(digest: str) -> None:
    changed = copy.deepcopy(CONTRACT)
    changed["falsification_tests"][0]["evidence"]["statement_sha256"] = digest
    (problem,) = violations(read(changed))
    assert problem[0].key == "falsification_tests[0].evidence.statement_sha256"


@pytest.mark.parametrize("key", ["", "A" * 44, "A" * 40, "-----BEGIN PUBLIC KEY-----"])
def test_a_listed_key_is_32_bytes_in_base64(key: str) -> None:
    assert len(list(violations(read(CONTRACT | {"evidence_keys": {"lane": key}})))) == 1
