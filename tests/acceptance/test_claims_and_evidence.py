"""Claims against evidence, and evidence under any key: what is reported, and the neighbour that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome

TREE = {
    "Cargo.toml": '[package]\nname = "demo"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/lib.rs": (
        "pub fn add(a: i32, b: i32) -> i32 { a + b }\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n"
        "    #[test]\n    fn test_add_two_numbers() { assert_eq!(add(1, 2), 3); }\n}\n"
    ),
    "proofs/add.lean": "-- addition\ntheorem add_comm : True := trivial\n",
    "proofs/hollow.lean": "-- to be proved\n/- later -/\n",
    "runs/live.json": "{}\n",
}
HEAD = "metadata: {id: C-DEMO, version: 1.0.0, description: d}\n"
ENTRY = "falsification_tests:\n- id: FALSIFY-D-001\n  rule: r\n  prediction: p\n"
TEST = "  test: cargo test -p demo test_add_two_numbers\n"
LOCATION = "src/lib.rs::tests::test_add_two_numbers"


def check(root: Path, contract: str, *, strict: bool = False, **more: str) -> ValidationOutcome:
    files = {**TREE, "contracts/c-v1.yaml": contract, **more}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return validate((root / "contracts",), strict=strict, cached=False)


def codes(outcome: ValidationOutcome) -> list[str]:
    return [one.problem.code for one in outcome.shown]


@pytest.mark.parametrize(
    "key",
    [
        "test_locations", "verified_by", "bound_to", "implementation", "implemented_by",
        "functional_evidence",
        "evidence", "evidence_discharged_by", "tested_by", "live_evidence", "test_files",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "[{}]", "[src/lib.rs, '{} \u2014 adds']", "`{}`"])
def test_evidence_is_read_under_any_key(tmp_path: Path, key: str, form: str) -> None:
    value = form if form[0] != "`" else f"'{form}'"
    right = check(tmp_path, f"{HEAD}{ENTRY}{TEST}  {key}: {value.format(LOCATION)}\n")
    wrong = check(tmp_path, f"{HEAD}{ENTRY}{TEST}  {key}: {value.format('src/lib.rs::tests::test_gone')}\n")
    assert codes(right) == []
    assert codes(wrong) == ["symbol-not-found"]


@pytest.mark.parametrize(
    ("entry", "reported"),
    [
        ("  status: IMPLEMENTED\n", ["claim-without-evidence"]),
        ("  status: PROVED\n  notes: seen by me\n", ["claim-without-evidence"]),
        ("  discharge_status: DISCHARGED\n  evidence_discharged_by: []\n", ["claim-without-evidence"]),
        ("  verdict: pass\n  evidence: TBD\n", ["claim-without-evidence"]),
        ("  verdict: PASS\n  test: |\n    # later\n", ["claim-without-evidence", "test-of-comments-only"]),
        ("  status: IMPLEMENTED\n" + TEST, []),
        (f"  status: PROVED\n  verified_by: {LOCATION}\n", []),
        (f"  discharge_status: DISCHARGED\n  evidence_discharged_by: [{LOCATION}]\n", []),
        ("  verdict: pending\n", []),
        ("  status: PLANNED\n", []),
        ("  status: BLOCKER_FIXTURE_ABSENT\n  test: |\n    # once the oracle is there\n", []),
        ("  verdict: fail\n  status: IMPLEMENTED\n" + TEST, ["verdict-disagrees"]),
        ("  verdict: pass\n  status: PARTIAL\n  algorithm_evidence: [src/lib.rs]\n" + TEST, []),
        ("  test: cargo test -p demo test_add_two_numbers or equivalent\n", ["test-or-equivalent"]),
        ("  prediction2: x\n  test: TBD\n", ["placeholder"]),
        ("  status: PLANNED\n  algorithm_evidence: [src/lib.rs]\n" + TEST, ["under-claimed"]),
        ("  status: PLANNED\n  algorithm_evidence: [src/later.rs]\n" + TEST, ["absent-as-stated"]),
        ("  proof_file: proofs/hollow.lean\n" + TEST, ["file-of-comments-only"]),
        ("  proof_file: proofs/add.lean\n" + TEST, []),
        ("  signed_attestation: x.json\n" + TEST, ["evidence-not-read"]),
    ],
)  # fmt: skip
def test_what_one_falsifier_claims(tmp_path: Path, entry: str, reported: list[str]) -> None:
    assert sorted(codes(check(tmp_path, HEAD + ENTRY + entry))) == reported


FUNCTIONAL = f"{HEAD}{ENTRY}{TEST}  status: FUNCTIONAL\n  algorithm_evidence: [src/lib.rs]\n"


@pytest.mark.parametrize(
    ("evidence", "reported"),
    [
        ("", ["functional-without-bundle"]),
        ("  functional_evidence: [seen live on my machine]\n", ["functional-without-bundle"]),
        ("  functional_evidence: [runs/live.json]\n", []),
        ("  evidence: {bundle: runs/live.json}\n  discharge: {lane: x}\n", []),
        ("  evidence: {bundle: runs/gone}\n  discharge: {lane: x}\n", ["functional-without-bundle"]),
    ],
)
def test_functional_without_a_bundle_warns_and_is_an_error_with_strict(
    tmp_path: Path, evidence: str, reported: list[str]
) -> None:
    outcome = check(tmp_path, FUNCTIONAL + evidence)
    assert codes(outcome) == reported
    assert outcome.exit_code == 0
    assert check(tmp_path, FUNCTIONAL + evidence, strict=True).exit_code == len(reported)


TWO = (
    f"{HEAD}{ENTRY}{TEST}  status: IMPLEMENTED\n- id: FALSIFY-D-002\n  rule: r\n{TEST}  status: IMPLEMENTED\n"
)
OBLIGATIONS = "proof_obligations:\n- {id: D-INV-001, property: p}\n- {id: D-INV-002, property: q}\n"


@pytest.mark.parametrize(
    ("block", "reported"),
    [
        ("verification_summary: {tested: 0}\n", ["summary-disagrees"]),
        ("verification_summary: {tested: 2}\n", []),
        ("verification_summary: {total_obligations: 47}\n", ["count-disagrees"]),
        ("verification_summary: {total_obligations: 2, tested: 2}\n" + OBLIGATIONS, []),
        ("verification_summary: {total_obligations: 2, proven: 3}\n" + OBLIGATIONS, ["summary-disagrees"]),
        ("notes: '4/10 bound: D-1-001, D-1-002, D-1-003, D-1-004, D-1-005'\n", ["summary-disagrees"]),
        ("notes: '5/10 bound: D-1-001, D-1-002, D-1-003, D-1-004, D-1-005'\n", []),
        ("notes: about 3 of 10 tested runs pass\n", []),
        ("kani_harnesses:\n- {id: K-001, obligation: D-INV-001}\n" + OBLIGATIONS, []),
        ("kani_harnesses:\n- {id: K-001, obligation: E-INV-001}\n" + OBLIGATIONS, ["obligation-not-found"]),
        ("kani_harnesses:\n- {id: K-001, obligation: p}\n" + OBLIGATIONS, []),
        ("kani_harnesses:\n- {id: K-001, obligation: E-INV-001}\n", []),
        ("notes: FALSIFY-D-003 is discharged\n", ["id-not-registered"]),
        ("notes: FALSIFY-D-003 was removed in 0.9.0\n", []),
        ("notes: FALSIFY-OTHER-003 of another repository\n", []),
        ("tasks:\n- {id: T-1, status: DONE, verified_by: 'src/lib.rs::gone'}\n", ["symbol-not-found"]),
        ("tasks:\n- {id: T-1, status: DONE}\n", ["claim-without-evidence"]),
        ("tasks:\n- {id: T-1, status: DONE, files: [src/lib.rs]}\n", []),
        ("tasks:\n- {id: T-1, status: TODO}\n", []),
        (
            "falsification_conditions:\n- {id: FC-1, condition: c, status: PROVED}\n",
            ["claim-without-evidence"],
        ),
        ("falsification_conditions: [the sum differs]\n", []),
    ],
)
def test_what_a_contract_sums_up_and_cites(tmp_path: Path, block: str, reported: list[str]) -> None:
    assert codes(check(tmp_path, TWO + block)) == reported


@pytest.mark.parametrize(
    ("status", "reported"),
    [
        ("ACTIVE_RUNTIME", []),
        ("PLANNED_M1", []),
        ("IMPLEMENTED_M32", []),
        ("in progress", []),
        ("PARTIAL_ALGORITM_LEVEL", ["unknown-status"]),
        ("FUNCTIONAL_SOON", ["unknown-status"]),
    ],
)
def test_status_words_that_are_used_upstream(tmp_path: Path, status: str, reported: list[str]) -> None:
    entry = f"  status: {status}\n  algorithm_evidence: [src/lib.rs]\n"
    outcome = check(tmp_path, f"{HEAD}{ENTRY}  test: cargo test -p demo\n{entry}")
    assert codes(outcome) == reported
    hints = [one.problem.hint for one in outcome.shown]
    assert not [hint for hint in hints if "SOON" in status and "did you mean" in hint]


@pytest.mark.parametrize(
    ("test", "reported"),
    [
        ("property_based_testing", []),
        ("manual_code_review", []),
        ("test vectors of the paper, test_data/ref.json", []),
        ("proptest with random seq_len and d_k", []),
        ("the function test_add_two_number adds", ["name-in-prose"]),
        ("see the tests test_add_two_numbers and test_gone_for_good", ["name-in-prose"]),
        ("test_gone", ["test-not-found"]),
    ],
)
def test_labels_are_no_names(tmp_path: Path, test: str, reported: list[str]) -> None:
    assert codes(check(tmp_path, f"{HEAD}{ENTRY}  test: '{test}'\n")) == reported


CODE = "  falsification_test: |\n    #[test]\n    fn {} () {{\n        assert!(true);\n    }}\n"


@pytest.mark.parametrize(
    ("status", "name", "reported"),
    [
        ("IMPLEMENTED", "falsify_gone", ["test-not-found"]),
        ("IMPLEMENTED", "test_add_two_numbers", []),
        ("PLANNED", "falsify_gone", []),
        ("PARTIAL_ALGORITHM_LEVEL\n  implementation: src/lib.rs", "falsify_gone", ["test-not-found"]),
    ],
)
def test_inline_code_exists_where_the_status_says_so(
    tmp_path: Path, status: str, name: str, reported: list[str]
) -> None:
    assert codes(check(tmp_path, f"{HEAD}{ENTRY}  status: {status}\n{CODE.format(name)}")) == reported


BINDING = "version: 1.0.0\ntarget_crate: {}\nbindings:\n- {{contract: c-v1.yaml, function: {}, status: {}}}\n"


@pytest.mark.parametrize(
    ("crate", "function", "status", "reported"),
    [
        ("demo", "add", "implemented", []),
        ("demo", "ghost", "implemented", ["symbol-not-found"]),
        ("demo", "ghost", "not_implemented", []),
        ("far", "ghost", "implemented", ["unresolved-name"]),
        ("demo", "~", "implemented", ["binding-without-function"]),
    ],
)
def test_a_binding_names_a_function_of_its_crate(
    tmp_path: Path, crate: str, function: str, status: str, reported: list[str]
) -> None:
    binding = BINDING.format(crate, function, status)
    outcome = check(tmp_path, f"{HEAD}{ENTRY}{TEST}", **{"contracts/binding.yaml": binding})
    assert codes(outcome) == reported
    assert outcome.counts.bindings == 1
