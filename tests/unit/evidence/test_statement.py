"""``statement.json`` against the published definitions of in-toto, read by in-toto's own package."""

from __future__ import annotations

import json
from typing import Any

import google.protobuf.json_format as protobuf_json
import pytest
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from apr_falsify.evidence.bundle import Draft
from apr_falsify.evidence.files import STATEMENT, sha256
from apr_falsify.evidence.outcome import Ended, Role, TestRecord
from apr_falsify.evidence.verify import verify
from tests.support import DATA
from tests.unit.evidence.bundles import CLAIM, TESTS, digest_of, facts_of, measured_draft
from tests.unit.evidence.forging import Files, files_of

FALSIFIED = (TestRecord(name="t.py::a", ended=Ended.FAILED, reason="wrong"), TESTS[1])
NOT_RUN = (TestRecord(name="t.py::a", ended=Ended.SKIPPED, reason="no apr"), TESTS[1])
ERROR = (TESTS[0], TestRecord(name="t.py::c", ended=Ended.FAILED, role=Role.CONTROL, reason="broken"))

CASES = {
    "measured": lambda: measured_draft()[0],
    "survived": lambda: Draft(facts=facts_of()),
    "falsified": lambda: Draft(facts=facts_of(*FALSIFIED)),
    "not run": lambda: Draft(facts=facts_of(*NOT_RUN)),
    "error": lambda: Draft(facts=facts_of(*ERROR)),
}


def validated(data: bytes) -> Any:
    """Read a statement by in-toto's protobuf definition, which knows no other key, and validate it."""
    message = statement_pb2.Statement()
    protobuf_json.Parse(data, message, ignore_unknown_fields=False)
    Statement.copy_from_pb(message).validate()
    predicate = test_result_pb2.TestResult()
    protobuf_json.Parse(
        protobuf_json.MessageToJson(message.predicate), predicate, ignore_unknown_fields=False
    )
    for descriptor in predicate.configuration:
        ResourceDescriptor.copy_from_pb(descriptor).validate()
        assert descriptor.digest or descriptor.uri or descriptor.content, "spec/v1/resource_descriptor.md"
    return predicate


@pytest.mark.parametrize("make", CASES.values(), ids=list(CASES))
def test_it_validates_against_the_published_definition(make: Any) -> None:
    files = files_of(make())
    predicate = validated(files[STATEMENT])
    assert predicate.result in ("PASSED", "FAILED", "WARNED")


def test_in_totos_own_reader_refuses_what_is_none() -> None:
    files = files_of(Draft(facts=facts_of()))
    data = json.loads(files[STATEMENT])
    with pytest.raises(protobuf_json.ParseError):
        validated(json.dumps({**data, "novelty": 1}).encode())
    with pytest.raises(ValueError, match="subject"):
        validated(json.dumps({**data, "subject": []}).encode())


@pytest.mark.parametrize(
    ("tests", "result", "passed", "warned", "failed"),
    [
        (TESTS, "PASSED", 2, 0, 0),
        (FALSIFIED, "FAILED", 1, 0, 1),
        (NOT_RUN, "WARNED", 1, 1, 0),
        (ERROR, "WARNED", 1, 0, 1),
    ],
)
def test_outcomes_are_told_in_the_words_of_the_predicate(
    tests: tuple[TestRecord, ...], result: str, passed: int, warned: int, failed: int
) -> None:
    predicate = validated(files_of(Draft(facts=facts_of(*tests)))[STATEMENT])
    assert predicate.result == result
    counts = [
        len(found) for found in (predicate.passed_tests, predicate.warned_tests, predicate.failed_tests)
    ]
    assert counts == [passed, warned, failed]


def subjects(files: Files) -> dict[str, str]:
    return {one["name"]: one["digest"]["sha256"] for one in json.loads(files[STATEMENT])["subject"]}


def test_its_subjects_are_every_other_file_with_its_digest() -> None:
    files = files_of(measured_draft()[0])
    assert subjects(files) == {name: sha256(data) for name, data in files.items() if name != STATEMENT}


def test_its_configuration_is_claim_code_models_and_traces_with_their_digests() -> None:
    draft, _ = measured_draft()
    files = files_of(draft)
    configuration = json.loads(files[STATEMENT])["predicate"]["configuration"]
    found = {one["name"]: one["digest"]["sha256"] for one in configuration}
    assert draft.oracle is not None
    assert found == {
        "claim/FALSIFY-TOY-001": digest_of(CLAIM),
        "function/src/toy.py::attend": "a" * 64,
        "model/oracle": draft.oracle.provenance.model_sha256,
        "model/subject": draft.oracle.provenance.model_sha256,
        "trace/oracle": sha256(files["oracle/trace.json"]),
        "trace/subject": sha256(files["subject/trace.json"]),
    }
    assert configuration[0]["annotations"]["lane"] == "embedded"


def test_a_bundle_that_an_earlier_version_wrote_still_verifies() -> None:
    """Written by the first version that wrote any; tests/data/README.md says how."""
    pin = "ba6e8495a7e96d2ea7161809b46c96a17aee82504b42ab3a7b9ded6f09ab94e0"
    found = verify(DATA / "bundle-v1.zip", pin=pin)
    assert found.problems == ()
    assert found.state == "verified"
    assert "statement.json: what it says of the bundle" in found.recomputed
