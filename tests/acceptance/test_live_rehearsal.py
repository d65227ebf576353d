"""The live lane, rehearsed on a CPU: the real ``apr`` as subject, the tiny checkpoint as model.

The whole path of SUB-004 runs, and the bundle earns no FUNCTIONAL: its lane is not the one of `discharge`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from apr_falsify.contracts.claim import Claim, read_claim
from apr_falsify.contracts.statuses import FUNCTIONAL, PARTIAL
from apr_falsify.evidence.binding import binding_of
from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.earn import Earned, earned
from apr_falsify.evidence.outcome import Ended, Level, Result, Role
from apr_falsify.evidence.verify import verify
from tests.acceptance.programs import TINY
from tests.faulted_checkpoints import FAULTS, write_faulted

REPOSITORY = Path(__file__).parents[2]
CONTRACT = REPOSITORY / "contracts" / "trace-attn-sub-stages-v1.yaml"
FALSIFIER = "FALSIFY-ATTN-SUB-004"

pytestmark = [
    pytest.mark.real_apr,
    pytest.mark.skipif(shutil.which("apr") is None, reason="no apr binary on PATH"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A session of pytest on the lane.

    Attributes:
        code: its exit code.
        out: what it printed.
        bundle: the bundle that it left.

    """

    code: int
    out: str
    bundle: Path


def rehearse(subject: Path, folder: Path) -> Rehearsal:
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/falsifiers"),
        *("-m", "falsify_attn_sub_004", f"--oracle-model={TINY}", f"--subject=apr:{subject}"),
        f"--evidence-dir={folder}",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    return Rehearsal(code=done.returncode, out=done.stdout + done.stderr, bundle=folder / FALSIFIER)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """The subject's checkpoint has no K bias in layer 0, the oracle's has one."""
    folder = tmp_path_factory.mktemp("faulty")
    model = write_faulted(TINY, folder / "model", FAULTS["zeroed-k-bias"])
    return rehearse(model, folder / "evidence")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return rehearse(TINY, tmp_path_factory.mktemp("sound") / "evidence")


def test_one_fault_survives_as_one_source_with_its_figures(faulty: Rehearsal) -> None:
    assert faulty.code == 0, faulty.out
    facts = read_bundle(faulty.bundle).facts
    assert facts.outcome.result is Result.SURVIVED
    (live,) = [one for one in facts.tests if one.level is Level.LIVE]
    assert (live.ended, live.role) == (Ended.PASSED, Role.PREDICTION)
    assert {one.role for one in facts.tests if one.level is Level.ALGORITHM} == {Role.CONTROL}
    junit = (faulty.bundle / "junit.xml").read_text()
    assert junit.count('name="cosine.attn_norm"') == 10, "nine controls and the subject"
    assert '<property name="source" value="qkv_bias" />' in junit


def test_its_bundle_verifies_and_tells_the_lane_as_it_was(faulty: Rehearsal) -> None:
    bundle = read_bundle(faulty.bundle)
    assert verify(faulty.bundle).holds
    lane = bundle.facts.lane
    assert lane.oracle is not None
    assert lane.subject is not None
    assert (lane.name, lane.prompt, lane.tokens) == ("unnamed", "What is 2+2?", (274, 272, 332, 13, 20, 33))
    assert (lane.oracle.runtime, lane.oracle.device, lane.subject.runtime) == ("hf", "cpu", "apr")
    assert lane.subject.device == "unknown", "apr trace 0.72 reports none"
    assert re.fullmatch("[0-9a-f]{64}", lane.subject.binary_sha256 or "")
    assert bundle.bisection is not None
    assert len(bundle.bisection["published_rule"]["cosines"]) == 9
    assert "embedded-default" in bundle.controls


def answer_to(bundle: Path) -> tuple[Earned, Claim]:
    """Return what a bundle earns that a person has pinned."""
    claim = read_claim(CONTRACT, FALSIFIER)
    pin = read_bundle(bundle).statement_sha256
    return earned(verify(bundle, pin=pin), claim, bound_now=binding_of(claim, REPOSITORY)), claim


def test_it_earns_no_functional_since_the_lane_is_another_than_discharge_names(faulty: Rehearsal) -> None:
    answer, claim = answer_to(faulty.bundle)
    assert claim.discharge is not None
    refusals = [one for one in answer.refusals if one.rung == FUNCTIONAL]
    assert {one.code for one in refusals} == {"lane"}
    said = " ".join(one.message for one in refusals)
    assert f"lane is unnamed, expected {claim.discharge['lane']}" in said
    assert "subject.device is unknown, expected cuda" in said
    uncommitted = {one.code for one in answer.bars(PARTIAL)}
    assert uncommitted <= {"uncommitted-sources"}, "nothing else stands between it and PARTIAL"


def test_the_sound_checkpoint_refutes_the_prediction_and_the_table_is_shown(sound: Rehearsal) -> None:
    assert sound.code == 1, sound.out
    assert read_bundle(sound.bundle).facts.outcome.result is Result.FALSIFIED
    assert verify(sound.bundle).holds
    assert "exactly one of 9 stages of layer 0 introduces an error; found: none" in sound.out
    assert " attn_softmax " in sound.out
    assert "FAILED tests/falsifiers/test_attention_chain.py::test_the_subject_of_the_lane" in sound.out
    assert answer_to(sound.bundle)[0].rung == "BLOCKER_FIXTURE_ABSENT"


def test_gpu_without_cuda_stops_before_anything_is_collected() -> None:
    from apr_falsify.oracle.libraries import cuda_devices

    if cuda_devices():
        pytest.skip("CUDA is here, and it is its absence that is tested")
    command = [sys.executable, "-m", "pytest", "-m", "falsify_attn_sub_004", "--gpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 4
    assert "CUDA" in done.stderr
    assert "collected" not in done.stdout
