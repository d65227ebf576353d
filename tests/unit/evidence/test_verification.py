"""What verifying a bundle says of it: its state, what pins it, what is wrong, what was left out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apr_falsify.errors import EvidenceError, OutputError
from apr_falsify.evidence import bundle as module
from apr_falsify.evidence.bundle import Draft, bundle_files, read_bundle, sign_bundle, write_bundle
from apr_falsify.evidence.files import BUNDLE, CLAIM, ENVELOPE, JUNIT, REPORT, STATEMENT, is_name, json_bytes
from apr_falsify.evidence.sign import SigningKey
from apr_falsify.evidence.verify import verify
from tests.unit.evidence.bundles import TESTS, facts_of, measured_draft
from tests.unit.evidence.forging import Files, checked, codes, edited, files_of, forged, resealed, write


@pytest.fixture(scope="module")
def files() -> Files:
    return files_of(Draft(facts=facts_of()))


@pytest.fixture(scope="module")
def measured() -> Files:
    return files_of(measured_draft()[0])


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey(id="lane", private=Ed25519PrivateKey.generate())


# --- state and pins ---------------------------------------------------------------


def test_nothing_pins_a_bundle_by_itself(files: Files) -> None:
    found = checked(files)
    assert (found.holds, found.state, found.pinned_by, found.problems) == (True, "unpinned", (), ())


def test_the_expected_digest_pins_it_in_either_case_of_letters(files: Files) -> None:
    digest = checked(files).statement_sha256
    for pin in (digest, digest.upper()):
        found = checked(files, pin=pin)
        assert (found.state, found.pinned_by) == ("verified", ("digest",))
    found = checked(files, pin="0" * 64)
    assert (codes(found), found.pinned_by) == ({"pin-differs"}, ())


def test_digest_and_signature_both_pin_it(key: SigningKey) -> None:
    files = files_of(Draft(facts=facts_of()), key=key)
    found = checked(files, keys={key.id: key.public}, pin=checked(files).statement_sha256)
    assert (found.pinned_by, found.signed_by) == (("digest", "signature"), (key.id,))


def test_its_json_says_broken_where_anything_is_wrong_whatever_pins_it(files: Files) -> None:
    digest = checked(files).statement_sha256
    good, bad = (
        checked(files, pin=digest).to_json(),
        checked({**files, "extra.txt": b""}, pin=digest).to_json(),
    )
    assert (good["holds"], good["state"]) == (True, "verified")
    assert (bad["holds"], bad["state"], bad["pinned_by"]) == (False, "broken", ["digest"])
    assert checked(files).to_json()["state"] == "unpinned"
    assert good["falsifier"] == "FALSIFY-TOY-001"
    assert good["lane"] == "embedded"
    assert good["outcome"] == {"result": "SURVIVED", "reason": "1 prediction and 1 control passed"}
    assert good["statement_sha256"] == digest
    assert [set(problem) for problem in bad["problems"]] == [{"code", "file", "message"}]
    assert json.loads(json.dumps(bad)) == bad


def test_of_a_bundle_that_cannot_be_read_there_are_no_facts_in_its_json(files: Files) -> None:
    found = checked({name: data for name, data in files.items() if name != BUNDLE}).to_json()
    assert (found["falsifier"], found["outcome"], found["lane"]) == (None, None, None)
    assert found["holds"] is False


# --- files ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BUNDLE, CLAIM, JUNIT, STATEMENT])
def test_a_file_that_every_bundle_has_is_missed_once(files: Files, name: str) -> None:
    found = checked({key: data for key, data in files.items() if key != name})
    assert [problem.file for problem in found.problems].count(name) == 1
    assert "missing-file" in codes(found)
    assert "the figures that rest on what does not verify" in found.not_checked


def test_a_file_that_the_statement_names_is_missed(measured: Files) -> None:
    found = checked({name: data for name, data in measured.items() if name != "oracle/trace.json"})
    assert [(one.code, one.file) for one in found.problems] == [("missing-file", "oracle/trace.json")]


def test_a_file_that_the_statement_does_not_name_is_extra(files: Files) -> None:
    found = checked({**files, REPORT: b"<html>"})
    assert [(one.code, one.file) for one in found.problems] == [("extra-file", REPORT)]


def test_a_changed_file_is_named_with_both_digests(files: Files) -> None:
    found = checked({**files, CLAIM: files[CLAIM] + b" "})
    (problem,) = [one for one in found.problems if one.code == "changed-file"]
    assert problem.file == CLAIM
    assert "was changed: its sha256 is" in problem.message
    assert "the statement says" in problem.message


def test_every_file_that_is_intact_is_counted(files: Files) -> None:
    found = checked({**files, CLAIM: files[CLAIM] + b" "})
    assert f"{BUNDLE}: sha256" in found.recomputed
    assert f"{CLAIM}: sha256" not in found.recomputed


def test_a_report_is_checked_by_its_digest_alone_and_that_is_said() -> None:
    with_report = bundle_files(Draft(facts=facts_of()))
    assert any(REPORT in line for line in checked(with_report).not_checked)
    assert not any(REPORT in line for line in checked(files_of(Draft(facts=facts_of()))).not_checked)


# --- what it says of itself -------------------------------------------------------


def test_a_bundle_without_a_test_shows_nothing(files: Files) -> None:
    found = checked(forged_tests(files, []))
    assert "no-tests" in codes(found)


def forged_tests(files: Files, tests: list[dict[str, Any]]) -> Files:
    """Return the files with other tests, and with a statement that names the changed file."""
    changed = edited(files, BUNDLE, lambda data: data.update(tests=tests))
    statement = json.loads(files[STATEMENT])
    for one in statement["subject"]:
        if one["name"] == BUNDLE:
            one["digest"]["sha256"] = hashlib.sha256(changed[BUNDLE]).hexdigest()
    return {**changed, STATEMENT: json.dumps(statement).encode()}


def test_a_test_that_is_named_twice_is_told(files: Files) -> None:
    tests = [one.to_json() for one in TESTS]
    assert "duplicate-test" in codes(
        checked(forged(files, BUNDLE, lambda data: data.update(tests=[*tests, tests[0]])))
    )


def test_a_claim_of_another_falsifier_is_told(files: Files) -> None:
    found = checked(forged(files, BUNDLE, lambda data: data.update(falsifier="FALSIFY-TOY-002")))
    assert codes(found) == {"claim-differs"}
    assert "is of 'FALSIFY-TOY-001', the bundle of 'FALSIFY-TOY-002'" in found.problems[0].message


def test_a_claim_that_is_not_the_one_that_was_digested_is_told(files: Files) -> None:
    found = checked(resealed({**files, CLAIM: files[CLAIM].replace(b"computes what", b"computes that")}))
    assert codes(found) == {"claim-differs"}
    other = checked(forged(files, BUNDLE, lambda data: data.update(claim_sha256="0" * 64)))
    assert codes(other) == {"claim-differs"}


def test_a_claim_is_checked_though_no_other_file_is_intact(files: Files) -> None:
    lied = forged(files, BUNDLE, lambda data: data.update(falsifier="FALSIFY-TOY-002"))
    found = checked({**lied, JUNIT: lied[JUNIT] + b" "})
    assert codes(found) == {"changed-file", "claim-differs"}


def test_an_outcome_that_its_tests_do_not_give_is_told(files: Files) -> None:
    found = checked(forged(files, BUNDLE, lambda data: data["outcome"].update(result="FALSIFIED")))
    assert "outcome-differs" in codes(found)
    assert any("says FALSIFIED; its tests give SURVIVED" in one.message for one in found.problems)


def test_a_lane_without_traces_is_attested(files: Files) -> None:
    lane = {"name": "rtx", "subject": {"runtime": "apr"}}
    assert (
        "device and lane: self-attested"
        in checked(forged(files, BUNDLE, lambda data: data["lane"].update(lane))).attested
    )
    assert checked(files).attested == ()


def test_what_was_measured_is_not_looked_at_in_a_bundle_that_is_broken(measured: Files) -> None:
    good, bad = checked(measured), checked({**measured, "extra.txt": b""})
    assert any("accumulated" in line for line in good.recomputed)
    assert not any("accumulated" in line for line in bad.recomputed)
    assert (good.kinds, bad.kinds) == ({"bisection.json": "consistent"}, {})


# --- reading and signing ----------------------------------------------------------


@pytest.mark.parametrize("name", [BUNDLE, STATEMENT])
def test_a_bundle_without_its_own_words_cannot_be_read(files: Files, tmp_path: Path, name: str) -> None:
    path = write({key: data for key, data in files.items() if key != name}, tmp_path / "bundle")
    with pytest.raises(EvidenceError, match=f"no usable bundle: {name} is missing"):
        read_bundle(path)


def test_a_bundle_with_what_does_not_belong_there_is_refused_with_the_count(
    files: Files, tmp_path: Path
) -> None:
    path = write({**files, "a.txt": b"", "b.txt": b"", "c.txt": b""}, tmp_path / "bundle")
    with pytest.raises(EvidenceError, match=r"a\.txt is extra.*, and 2 more problems"):
        read_bundle(path)
    one = write({**files, "a.txt": b""}, tmp_path / "other")
    with pytest.raises(EvidenceError) as caught:
        read_bundle(one)
    assert "more problems" not in caught.value.what


def test_what_is_read_of_a_bundle_is_what_was_written(measured: Files, tmp_path: Path) -> None:
    found = read_bundle(write(measured, tmp_path / "bundle"))
    assert found.traces is not None
    assert found.statement_sha256 == checked(measured).statement_sha256
    assert found.controls == {}
    bare = read_bundle(write(files_of(Draft(facts=facts_of())), tmp_path / "bare"))
    assert (bare.traces, bare.bisection, bare.oracle, bare.subject) == (None, None, None, None)


def test_a_trace_without_values_is_read_and_gives_no_pair(measured: Files, tmp_path: Path) -> None:
    only_digests = resealed({name: data for name, data in measured.items() if not name.endswith(".bin")})
    found = read_bundle(write(only_digests, tmp_path / "bundle"))
    assert found.oracle is not None
    assert found.traces is None


def test_a_bundle_is_signed_in_place_and_its_other_files_stay(
    files: Files, tmp_path: Path, key: SigningKey
) -> None:
    path = write(files, tmp_path / "bundle")
    sign_bundle(path, key)
    assert {one.name for one in path.iterdir()} == {*files, ENVELOPE}
    assert {one.name for one in tmp_path.iterdir()} == {"bundle"}
    assert all((path / name).read_bytes() == data for name, data in files.items())
    found = verify(path, keys={key.id: key.public})
    assert (found.holds, found.signed_by) == (True, (key.id,))


def test_a_second_signature_keeps_the_first(files: Files, tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey(id="reviewer", private=Ed25519PrivateKey.generate())
    path = write(files, tmp_path / "bundle")
    sign_bundle(path, key)
    sign_bundle(path, other)
    found = verify(path, keys={key.id: key.public, other.id: other.public})
    assert set(found.signed_by) == {key.id, other.id}


def test_a_bundle_that_does_not_verify_is_never_signed(files: Files, tmp_path: Path, key: SigningKey) -> None:
    path = write({**files, CLAIM: b"{}"}, tmp_path / "bundle")
    with pytest.raises(EvidenceError, match="was changed"):
        sign_bundle(path, key)
    assert not (path / ENVELOPE).exists()


# --- writing ----------------------------------------------------------------------


def test_a_bundle_may_be_as_large_as_its_limit_and_no_byte_larger() -> None:
    draft = Draft(facts=facts_of())
    size = sum(map(len, files_of(draft).values()))
    assert sum(map(len, files_of(draft, limit=size).values())) == size
    with pytest.raises(EvidenceError, match=f"has {size} bytes without any stage file, ") as caught:
        files_of(draft, limit=size - 1)
    assert f"{BUNDLE} alone" in caught.value.what or f"{STATEMENT} alone" in caught.value.what
    largest = max(files_of(draft).items(), key=lambda item: len(item[1]))
    assert f"{largest[0]} alone {len(largest[1])}" in caught.value.what


def test_a_control_with_a_name_that_no_bundle_has_is_refused() -> None:
    draft, found = measured_draft()
    spoilt = Draft(
        **{**{name: getattr(draft, name) for name in draft.__slots__}, "controls": {"a b": found.to_json()}}
    )
    with pytest.raises(
        EvidenceError, match=r"'controls/a b/bisection\.json' is no name for a file of a bundle"
    ):
        files_of(spoilt)


def test_the_statement_is_written_last_so_that_half_a_bundle_is_none(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: SigningKey
) -> None:
    written: list[str] = []
    opened = Path.open

    def noted(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb":
            written.append(self.name)
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", noted)
    write_bundle(Draft(facts=facts_of()), tmp_path / "bundle", key=key, report=False)
    assert written[-2:] == [ENVELOPE, STATEMENT]
    assert sorted(written) == sorted([*files, ENVELOPE])


def test_folders_around_a_new_bundle_are_made(tmp_path: Path) -> None:
    write_bundle(Draft(facts=facts_of()), tmp_path / "a" / "b" / "bundle", report=False)
    assert verify(tmp_path / "a" / "b" / "bundle").holds


def test_writers_that_never_stop_exchanging_a_bundle_end_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    write_bundle(Draft(facts=facts_of()), path, report=False)
    renamed = Path.rename

    def put_back(self: Path, target: Path) -> Path:
        found = renamed(self, target)
        if self == path:  # what was moved away is there again at once
            write_bundle_files(path)
        return found

    def write_bundle_files(folder: Path) -> None:
        write(files_of(Draft(facts=facts_of())), folder)

    monkeypatch.setattr(Path, "rename", put_back)
    with pytest.raises(OutputError, match="others write the same bundle all the time"):
        module._place(files_of(Draft(facts=facts_of())), path)
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["bundle"]
    assert verify(path).holds


# --- names and bytes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("bundle.json", True),
        ("statement.dsse.json", True),
        ("oracle/trace.json", True),
        ("subject/layer-0/attn_out.bin", True),
        ("subject/layer-10/attn_out.bin", True),
        ("subject/lm_head.bin", True),
        ("controls/a-control.1/bisection.json", True),
        ("controls/test_x[scale-2]/bisection.json", True),
        ("subject/layer-01/attn_out.bin", False),
        ("subject/layer-12345678901/attn_out.bin", False),
        ("subject/layer-x/attn_out.bin", False),
        ("third/trace.json", False),
        ("subject/attn_out.BIN", False),
        ("controls/.hidden/bisection.json", False),
        (f"controls/{'a' * 120}/bisection.json", True),
        (f"controls/{'a' * 121}/bisection.json", False),
        ("bundleXjson", False),
        ("bundle.json\n", False),
    ],
)
def test_a_bundle_has_files_of_these_names_alone(name: str, known: bool) -> None:
    assert is_name(name) is known


def test_json_of_a_bundle_is_written_in_one_way() -> None:
    assert (
        json_bytes({"b": "ü", "a": [1.5, None]}) == '{\n "a": [\n  1.5,\n  null\n ],\n "b": "ü"\n}\n'.encode()
    )
    with pytest.raises(ValueError, match="JSON"):
        json_bytes(float("nan"))
