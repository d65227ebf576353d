"""Whatever is changed in a bundle, verification fails and says where: every byte, every file."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apr_falsify.evidence.bundle import Draft, write_bundle
from apr_falsify.evidence.files import ENVELOPE, STATEMENT
from apr_falsify.evidence.sign import SigningKey
from apr_falsify.evidence.verify import verify
from tests.unit.evidence.bundles import facts_of, measured_draft
from tests.unit.evidence.forging import Files, checked, codes, files_of

KEY = SigningKey(id="lane-a", private=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
KEYS = {"lane-a": base64.b64encode(KEY.private.public_key().public_bytes_raw()).decode()}


@pytest.fixture(scope="module")
def small() -> Files:
    """A signed bundle of at most 18 KiB with every kind of file but the report."""
    files = files_of(measured_draft(stages=("attn_softmax",))[0], key=KEY)
    assert 12 * 1024 <= sum(map(len, files.values())) <= 18 * 1024
    assert checked(files, keys=KEYS).state == "verified"
    assert checked(files, keys=KEYS).holds
    return files


@pytest.fixture(scope="module")
def measured() -> Files:
    """A signed bundle with traces and a bisection."""
    files = files_of(measured_draft()[0], key=KEY)
    assert checked(files, keys=KEYS).holds
    return files


def with_byte(data: bytes, at: int) -> bytes:
    """Flip one bit of the byte ``at``, another bit from byte to byte."""
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def test_every_single_byte_change_fails_and_names_the_file(small: Files) -> None:
    for name, data in small.items():
        for at in range(len(data)):
            found = checked({**small, name: with_byte(data, at)}, keys=KEYS)
            named = {problem.file for problem in found.problems}
            assert name in named or (name == STATEMENT and ENVELOPE in named), (name, at)


def test_every_single_byte_change_fails_where_nothing_pins_the_bundle(small: Files) -> None:
    unsigned = {name: data for name, data in small.items() if name != ENVELOPE}
    assert checked(unsigned).state == "unpinned"
    for name, data in unsigned.items():
        for at in range(len(data)):
            found = checked({**unsigned, name: with_byte(data, at)})
            assert not found.holds, (name, at)


def test_sampled_byte_changes_of_stages_and_figures_fail(measured: Files) -> None:
    chance = random.Random(7)
    for name, data in measured.items():
        for at in {0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(20))}:
            found = checked({**measured, name: with_byte(data, at)}, keys=KEYS)
            assert name in {problem.file for problem in found.problems} or name == STATEMENT, (name, at)
            assert not found.holds, (name, at)


@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_file_that_is_cut_off_or_longer_fails(measured: Files, length: int) -> None:
    for name, data in measured.items():
        other = data[:length] if length >= 0 else data + b"\n"
        assert not checked({**measured, name: other}, keys=KEYS).holds, name


def test_each_file_removed_fails_and_is_named(measured: Files) -> None:
    for name in measured:
        rest = {other: data for other, data in measured.items() if other != name}
        found = checked(rest, keys=KEYS, pin=None)
        if name == ENVELOPE:  # without its signature it is whole, and nothing pins it
            assert found.holds
            assert found.state == "unpinned"
        else:
            assert {problem.file for problem in found.problems} & {name, ENVELOPE}, name
            assert "missing-file" in codes(found)


ADDED = ("oracle/extra.bin", "subject/layer-1/attn_out.bin", "controls/more/bisection.json", "report.html")


@pytest.mark.parametrize("name", ADDED)
def test_a_file_added_fails_and_is_named(measured: Files, name: str) -> None:
    found = checked({**measured, name: b"{}"}, keys=KEYS)
    assert ("extra-file", name) in {(problem.code, problem.file) for problem in found.problems}


def test_each_file_renamed_fails_and_both_names_are_told(measured: Files) -> None:
    for name in measured:
        rest = {other: data for other, data in measured.items() if other != name}
        new = "controls/renamed/bisection.json"
        found = checked({**rest, new: measured[name]}, keys=KEYS)
        assert not found.holds, name
        assert new in {problem.file for problem in found.problems} or name == STATEMENT, name


def test_two_files_swapped_fail(measured: Files) -> None:
    first, second = "oracle/layer-0/attn_norm.bin", "oracle/layer-0/q_post_rope.bin"
    swapped = {**measured, first: measured[second], second: measured[first]}
    assert codes(checked(swapped, keys=KEYS)) == {"changed-file"}


def test_the_same_holds_on_disk(tmp_path: Path, small: Files) -> None:
    write_bundle(Draft(facts=facts_of()), tmp_path / "bundle")
    for path in sorted((tmp_path / "bundle").iterdir()):
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 5)):
            path.write_bytes(with_byte(data, at))
            assert not verify(tmp_path / "bundle").holds, (path.name, at)
        path.write_bytes(data)
    assert verify(tmp_path / "bundle").holds


def test_a_pin_of_another_bundle_fails(small: Files) -> None:
    other = files_of(Draft(facts=replace(facts_of(), contract_version="1.0.1")))
    pin = checked(other).statement_sha256
    assert codes(checked(small, pin=pin)) == {"pin-differs"}
    assert checked(other, pin=pin).state == "verified"
    assert checked(other, pin=pin.upper()).state == "verified"
