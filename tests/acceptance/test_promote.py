"""``apr-falsify promote`` on a project whose bundles a real pytest run left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.contracts.claim import read_claim
from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.facts import LaneFacts, Side, Sources
from apr_falsify.evidence.outcome import Ended, Level, SeenRun, TestRecord
from apr_falsify.evidence.sign import SigningKey
from tests.acceptance.programs import Outcome, assert_refused, run
from tests.acceptance.toy_project import (
    BLOCKER,
    CONTRACT,
    ONE,
    PARTIAL,
    TWO,
    commit,
    edit,
    measure,
    measured,
    rewritten,
    toy,
)

__all__ = ["measured", "toy"]

EVIDENCE = Path("evidence")
LANE = LaneFacts(
    name="bench",
    prompt="p",
    tokens=(1, 2),
    layers=(0, 1),
    oracle=Side(runtime="hf", version="5.23.0"),
    subject=Side(runtime="apr", version="0.72.3"),
)
LIVE = TestRecord(
    name="tests/test_toy.py::test_live", ended=Ended.PASSED, level=Level.LIVE, measured=(SeenRun.SUBJECT,)
)


def promote(falsifier: str = ONE, *arguments: object, bundle: str = "") -> Outcome:
    return run("promote", CONTRACT, falsifier, "--evidence", EVIDENCE / (bundle or falsifier), *arguments)


def contract_bytes() -> bytes:
    return Path(CONTRACT).read_bytes()


def live(**changes: Any) -> str:
    """Rewrite the bundle of ONE as one of the lane that its contract names."""
    tests = (*read_bundle(EVIDENCE / ONE).facts.tests, LIVE)
    return rewritten(EVIDENCE / ONE, **({"lane": LANE, "tests": tests} | changes))


def test_a_bundle_of_pytest_raises_a_falsifier_by_one_rung(toy: Path) -> None:
    before = contract_bytes()
    done = promote()
    assert done.code == 0, done.err
    claim = read_claim(Path(CONTRACT), ONE)
    assert claim.rung == PARTIAL
    assert claim.version == "1.1.0"
    assert claim.pin is not None
    assert claim.pin.bundle == f"evidence/{ONE}"
    assert claim.pin.statement_sha256 == read_bundle(EVIDENCE / ONE).statement_sha256
    assert f"{ONE} {BLOCKER} -> {PARTIAL}, version 1.0.0 -> 1.1.0" in done.out
    lines = {line for line in contract_bytes().splitlines() if line not in before.splitlines()}
    assert len(lines) == 4  # status, evidence, version, changelog; TWO is still the weakest


def test_a_dry_run_prints_the_diff_and_writes_nothing(toy: Path) -> None:
    before = contract_bytes()
    done = promote(ONE, "--dry-run")
    assert done.code == 0
    assert contract_bytes() == before
    command = ["git", "apply", "--check", "-"]
    git = subprocess.run(command, input=done.out, text=True, cwd=toy, check=False, capture_output=True)
    assert git.returncode == 0, git.stderr
    changed = [line for line in done.out.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert changed[0] == "-  version: 1.0.0"
    assert len(changed) == 6


def test_the_second_falsifier_raises_the_contract_and_the_first_stays_fresh(toy: Path) -> None:
    promote(ONE)
    assert promote(TWO).code == 0
    assert b"  version: 1.2.0\n" in contract_bytes()
    assert b"  status: PARTIAL_ALGORITHM_LEVEL\n  description" in contract_bytes()
    done = run("status", "contracts", "--format", "json")
    assert done.json["evidence"][PARTIAL] == {"fresh": 2, "stale": 0, "broken": 0, "absent": 0}


# refusals, each for its own reason


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap() -> None:
    shutil.rmtree(EVIDENCE / ONE)
    shutil.copytree(EVIDENCE / TWO, EVIDENCE / ONE)


def failing(name: str) -> tuple[TestRecord, ...]:
    tests = read_bundle(EVIDENCE / ONE).facts.tests
    return tuple(replace(one, ended=Ended.FAILED, reason="r") if name in one.name else one for one in tests)


def sources(**changes: Any) -> Any:
    return replace(read_bundle(EVIDENCE / ONE).facts.sources, **changes)


REFUSALS = {
    "does-not-verify": lambda: spoil(EVIDENCE / ONE / "junit.xml"),
    "other-falsifier": swap,
    "other-contract": lambda: edit(Path(CONTRACT), "id: C-TOY", "id: C-OTHER"),
    "other-project": lambda: edit(Path("pyproject.toml"), '"toy"', '"another"'),
    "claim-changed": lambda: edit(Path(CONTRACT), "two names give two stages", "two names give three"),
    "code-changed": lambda: edit(Path("src/blanks.py"), "text.strip()", "text.strip(' ')"),
    "uncommitted-sources": lambda: rewritten(EVIDENCE / ONE, sources=sources(uncommitted=("src/toy.py",))),
    "control-failed": lambda: rewritten(EVIDENCE / ONE, tests=failing("is_seen")),
    "not-survived": lambda: rewritten(EVIDENCE / ONE, tests=failing("two_names")),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_bundle_that_does_not_carry_partial_is_refused_with_the_reason(toy: Path, code: str) -> None:
    REFUSALS[code]()
    before = contract_bytes()
    assert_refused(promote(), f"\n  {code}: ")
    assert contract_bytes() == before
    assert sorted(os.listdir("contracts")) == ["toy-v1.yaml"]


def test_a_comment_in_the_code_changes_nothing(toy: Path) -> None:
    edit(Path("src/blanks.py"), "def strip(text):\n", "def strip(text):\n    # from both ends\n\n")
    edit(Path("src/blanks.py"), "return 1", "return 2")  # in a function that nothing uses
    assert promote().code == 0


def test_a_run_with_uncommitted_sources_is_refused_and_the_contract_is_no_source(toy: Path) -> None:
    edit(Path(CONTRACT), "id: C-TOY\n", "id: C-TOY   # under way\n")
    assert measure(toy).returncode == 0
    assert promote(TWO, "--dry-run").code == 0
    edit(Path("src/blanks.py"), "return 1", "return 2")
    assert measure(toy).returncode == 0
    assert_refused(promote(TWO), "uncommitted-sources: it was made with uncommitted sources: src/blanks.py")
    commit(toy)
    assert measure(toy).returncode == 0
    assert promote(TWO).code == 0


FUNCTIONAL_REFUSALS = {
    "unpinned": ({}, False),
    "embedded-runtime": ({"lane": LaneFacts(name="embedded")}, True),
    "no-live-test": ({"tests": (replace(LIVE, level=Level.ALGORITHM),)}, True),
    "lane": ({"lane": replace(LANE, name="bank", subject=Side(runtime="apr", version="0.71.9"))}, True),
    "no-commit": ({"sources": Sources(project="toy")}, True),
}


@pytest.mark.parametrize("code", FUNCTIONAL_REFUSALS)
def test_a_bundle_that_does_not_carry_functional_is_refused_with_the_reason(toy: Path, code: str) -> None:
    promote()
    changes, expect = FUNCTIONAL_REFUSALS[code]
    digest = live(**changes)
    before = contract_bytes()
    assert_refused(promote(ONE, *(["--expect", digest] if expect else [])), f"\n  {code}: ")
    assert contract_bytes() == before


def test_every_unmet_word_of_the_lane_is_said(toy: Path) -> None:
    promote()
    digest = live(**FUNCTIONAL_REFUSALS["lane"][0])
    assert_refused(
        promote(ONE, "--expect", digest),
        "lane: lane is bank, expected bench",
        "lane: subject.version is 0.71.9, expected >=0.72",
    )


def test_the_lane_and_the_expected_digest_earn_functional_and_then_the_ladder_ends(toy: Path) -> None:
    promote()
    digest = live()
    assert promote(ONE, "--expect", digest).code == 0
    assert read_claim(Path(CONTRACT), ONE).rung == "FUNCTIONAL"
    assert_refused(promote(ONE, "--expect", digest), "at the top of the ladder")


def test_another_digest_than_the_expected_is_refused(toy: Path) -> None:
    promote()
    live()
    assert_refused(promote(ONE, "--expect", "0" * 64), "does-not-verify: statement.json", "expected was 0000")


def test_the_signature_of_a_listed_key_pins_and_that_of_another_does_not(toy: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    promote()
    key = SigningKey(id="lane", private=Ed25519PrivateKey.generate())
    live(key=key)
    assert_refused(promote(), "unpinned: ")
    edit(Path(CONTRACT), "discharge:\n", f"evidence_keys: {{lane: {key.public}}}\ndischarge:\n")
    assert promote().code == 0
    other = SigningKey(id="lane", private=Ed25519PrivateKey.generate())
    assert other.public.encode() not in contract_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((ONE,), "earned by a bundle"),
        ((ONE, "--demote", "--evidence", "evidence"), "needs none"),
        ((ONE, "--demote", "--renew"), "exclude"),
        ((ONE, "--evidence", "evidence", "--expect", "abc"), "no sha256"),
        ((ONE, TWO, "--evidence", "a", "--evidence", "b"), "one falsifier at a time"),
        ((ONE, TWO, "--demote"), "one falsifier at a time"),
        ((ONE, TWO, "--renew", "--evidence", "a"), "1 for 2 falsifiers"),
        ((ONE, "--evidence", "a", "--evidence", "b"), "2 for 1 falsifiers"),
        ((ONE, ONE, "--renew", "--evidence", "a", "--evidence", "b"), "is named twice"),
        ((ONE, TWO, "--renew", "--evidence", "a", "--evidence", "b", "--expect", "0" * 64), "one digest"),
        ((ONE, "--evidence", "nowhere"), "nowhere"),
        ((ONE, "--evidence", "src"), "src"),
        (("FALSIFY-TOY-003", "--evidence", f"evidence/{ONE}"), "did you mean"),
        ((ONE, "--renew", "--evidence", f"evidence/{ONE}"), "rests on no bundle"),
    ],
)
def test_what_cannot_be_is_refused(toy: Path, arguments: tuple[str, ...], said: str) -> None:
    assert_refused(run("promote", CONTRACT, *arguments), said)


def test_a_bundle_outside_the_project_is_refused(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(EVIDENCE / ONE, tmp_path / "away")
    assert_refused(run("promote", CONTRACT, ONE, "--evidence", tmp_path / "away"), "outside the project")


def test_a_contract_that_is_none_is_refused(toy: Path) -> None:
    for path in ("contracts", "contracts/none.yaml", "pyproject.toml"):
        done = run("promote", path, ONE, "--evidence", EVIDENCE / ONE)
        assert done.code == 2
        assert "Traceback" not in done.err


# stale, renewed, demoted


def test_stale_evidence_is_renewed_at_the_rung_it_carries(toy: Path) -> None:
    promote()
    edit(Path("src/blanks.py"), "text.strip()", "text.strip(' ')")
    assert_refused(promote(ONE, "--renew"), "code-changed: ", "src/blanks.py::strip differs")
    commit(toy)
    assert measure(toy).returncode == 0
    done = promote(ONE, "--renew")
    assert done.code == 0, done.err
    assert f"{ONE} stays {PARTIAL}, version 1.1.0 -> 1.1.1" in done.out
    claim = read_claim(Path(CONTRACT), ONE)
    assert claim.pin is not None
    assert claim.pin.statement_sha256 == read_bundle(EVIDENCE / ONE).statement_sha256


def renew_both() -> Outcome:
    evidence = (argument for one in (ONE, TWO) for argument in ("--evidence", EVIDENCE / one))
    return run("promote", CONTRACT, ONE, TWO, "--renew", *evidence)


def test_several_are_renewed_in_one_version_and_one_line_of_the_changelog(toy: Path) -> None:
    promote(ONE)
    promote(TWO)
    edit(Path("src/blanks.py"), "text.strip()", "text.strip(' ')")
    commit(toy)
    before = contract_bytes()
    assert_refused(renew_both(), "code-changed: ")
    assert measure(toy, "-m", "falsify_toy_001").returncode == 0
    assert_refused(renew_both(), f"does not carry {TWO}", "code-changed: ")
    assert contract_bytes() == before, "all of them or none"
    assert measure(toy, "-m", "falsify_toy_002").returncode == 0
    done = renew_both()
    assert done.code == 0, done.err
    for one in (ONE, TWO):
        assert f"{one} stays {PARTIAL}, version 1.2.0 -> 1.2.1" in done.out
        claim = read_claim(Path(CONTRACT), one)
        assert claim.pin is not None
        assert claim.pin.statement_sha256 == read_bundle(EVIDENCE / one).statement_sha256
    lines = [
        line for line in contract_bytes().decode().splitlines() if line.encode() not in before.splitlines()
    ]
    assert len(lines) == 4  # version, changelog, and the evidence of each
    assert sum(f"the evidence of {ONE} and {TWO} is renewed." in line for line in lines) == 1
    assert run("status", "contracts", "--format", "json").json["evidence"][PARTIAL]["fresh"] == 2


def test_a_falsifier_whose_evidence_is_gone_is_written_a_rung_down(toy: Path) -> None:
    promote(ONE)
    promote(TWO)
    shutil.rmtree(EVIDENCE / ONE)
    done = run("promote", CONTRACT, ONE, "--demote")
    assert done.code == 0, done.err
    claim = read_claim(Path(CONTRACT), ONE)
    assert (claim.rung, claim.pin, claim.version) == (BLOCKER, None, "1.3.0")
    text = contract_bytes().decode()
    assert f"{ONE} falls from {PARTIAL} to {BLOCKER}, its evidence being broken." in text
    assert f"  status: {BLOCKER}\n  description" in text
    assert_refused(run("promote", CONTRACT, ONE, "--demote"), "at the bottom of the ladder")


# two at once


def test_of_two_sessions_that_promote_one_contract_none_is_lost(toy: Path) -> None:
    program = str(Path(sys.executable).parent / "apr-falsify")
    command = [program, "promote", CONTRACT]
    both = [
        subprocess.Popen([*command, one, "--evidence", f"evidence/{one}"], stderr=subprocess.PIPE, text=True)
        for one in (ONE, TWO)
    ]
    said = [one.communicate(timeout=600)[1] for one in both]
    won = [one for one, process in zip((ONE, TWO), both, strict=True) if process.returncode == 0]
    assert won
    assert all(read_claim(Path(CONTRACT), one).rung == PARTIAL for one in won)
    for process, words in zip(both, said, strict=True):
        assert process.returncode == 0 or "the contract changed between" in words
    assert sorted(os.listdir("contracts")) == ["toy-v1.yaml"]
