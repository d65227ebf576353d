"""FALSIFY-BUNDLE-001: a bundle with a changed byte, a missing file or a file too many does not verify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from apr_falsify.evidence.bundle import bundle_files
from apr_falsify.evidence.files import Contents, sha256
from apr_falsify.evidence.verify import verify_contents
from tests.unit.evidence.bundles import facts_of, measured_draft

pytestmark = pytest.mark.falsify_bundle_001

EVERY_BYTE_BELOW = 8_000
STEP = 997
"""Of a larger file every so many bytes are changed; its digest does not tell one from another."""

Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def files() -> Files:
    draft, _ = measured_draft()
    return bundle_files(draft)


@pytest.fixture(scope="module")
def without_traces() -> Files:
    from apr_falsify.evidence.bundle import Draft

    return bundle_files(Draft(facts=facts_of()))


def problems(files: Files, pin: str) -> list[str]:
    found = verify_contents(Contents(path=Path("bundle"), files=files), pin=pin)
    return [one.file for one in found.problems]


def pin_of(files: Files) -> str:
    return sha256(files["statement.json"])


def positions(content: bytes) -> Iterator[int]:
    yield from range(0, len(content), 1 if len(content) < EVERY_BYTE_BELOW else STEP)


def test_unchanged_it_verifies(files: Files, without_traces: Files) -> None:
    assert problems(files, pin_of(files)) == []
    assert problems(without_traces, pin_of(without_traces)) == []


def test_every_changed_byte_fails_and_names_its_file(without_traces: Files) -> None:
    pin, tried = pin_of(without_traces), 0
    for name, content in without_traces.items():
        for at in positions(content):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            assert name in problems({**without_traces, name: changed}, pin), (name, at)
            tried += 1
    assert tried > 2_000


def test_a_changed_byte_of_a_stage_or_a_trace_fails_and_names_its_file(files: Files) -> None:
    pin = pin_of(files)
    measured = [name for name in files if name.startswith(("oracle/", "subject/", "bisection"))]
    assert len(measured) > 10
    for name in measured:
        content = files[name]
        for at in (0, len(content) // 2, len(content) - 1):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            assert name in problems({**files, name: changed}, pin), (name, at)


def test_every_missing_file_fails_and_is_named(files: Files) -> None:
    for name in files:
        rest = {other: content for other, content in files.items() if other != name}
        assert name in problems(rest, pin_of(files)), name


def test_a_file_too_many_and_a_renamed_one_fail_and_are_named(files: Files) -> None:
    pin = pin_of(files)
    assert "controls/x/bisection.json" in problems({**files, "controls/x/bisection.json": b"{}"}, pin)
    renamed = {name.replace("attn_norm", "attn_out"): content for name, content in files.items()}
    assert renamed.keys() != files.keys()
    assert {"oracle/layer-0/attn_out.bin", "oracle/layer-0/attn_norm.bin"} <= {*problems(renamed, pin)}


def test_an_empty_set_of_tests_verifies_nothing() -> None:
    from apr_falsify.evidence.bundle import Draft
    from apr_falsify.evidence.outcome import outcome_of

    empty = bundle_files(Draft(facts=facts_of(tests=(), outcome=outcome_of(()))))
    assert problems(empty, pin_of(empty))
