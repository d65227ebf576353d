"""``validate-contracts`` and ``status`` on bundles that contracts name, and on tests cited by marker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.claim import Claim, Pin, read_claims
from apr_falsify.contracts.outcome import ValidationOutcome
from apr_falsify.contracts.promote import Move, PromotionPlan, plan_edit
from apr_falsify.evidence.binding import binding_of
from apr_falsify.evidence.bundle import Draft, read_bundle, write_bundle
from apr_falsify.evidence.earn import state_of
from apr_falsify.evidence.facts import LaneFacts
from apr_falsify.evidence.verify import verify
from apr_falsify.symbols.digest import Project
from tests.acceptance.programs import run
from tests.acceptance.toy_project import (
    BLOCKER,
    CONTRACT,
    ONE,
    PARTIAL,
    TWO,
    commit,
    edit,
    git,
    measured,
    rewritten,
    toy,
)
from tests.unit.evidence.bundles import facts_of

__all__ = ["measured", "toy"]

REPOSITORY = Path(__file__).parents[2]
EVIDENCE = Path("evidence")
RENEWS = (
    f"pytest -m falsify_toy_001 --evidence-dir=evidence && "
    f"apr-falsify promote {CONTRACT} {ONE} --evidence evidence/{ONE} --renew"
)


def promote(*arguments: object) -> None:
    done = run("promote", CONTRACT, *arguments)
    assert done.code == 0, done.err


@pytest.fixture
def promoted(toy: Path) -> Path:
    """Both falsifiers PARTIAL, each on its bundle, and all of it committed."""
    for one in (ONE, TWO):
        promote(one, "--evidence", EVIDENCE / one)
    commit(toy)
    return toy


def found(*, strict: bool = False, cached: bool = False) -> dict[str, str]:
    """Code -> severity of what the validator says of the project."""
    outcome = validate((), strict=strict, cached=cached)
    return {one.problem.code: one.severity for one in outcome.shown}


def message(code: str) -> str:
    return next(
        f"{one.problem.message} {one.problem.hint}" for one in looked().shown if one.problem.code == code
    )


def looked() -> ValidationOutcome:
    return validate((), cached=False)


def test_fresh_evidence_is_counted_and_says_nothing(promoted: Path) -> None:
    assert found(strict=True) == {}
    counts = looked().counts
    assert (counts.bundles, counts.fresh, counts.evidence_unchecked) == (2, 2, 0)


def test_changed_code_is_stale_warns_and_names_the_commands_that_renew_it(promoted: Path) -> None:
    edit(Path("src/toy.py"), 'split(",")', 'split(",", -1)')
    assert found() == {"evidence-stale": "warning"}
    assert found(strict=True) == {"evidence-stale": "error"}
    assert "src/toy.py::split differs" in message("evidence-stale")
    assert RENEWS in message("evidence-stale")


@pytest.mark.parametrize(("tag", "severity"), [("v1.0.0", "error"), ("2.1", "error"), ("nightly", "warning")])
def test_stale_is_an_error_on_a_release(promoted: Path, tag: str, severity: str) -> None:
    edit(Path("src/toy.py"), 'split(",")', 'split(",", -1)')
    git(promoted, "tag", tag)
    assert found() == {"evidence-stale": severity}


def test_a_changed_claim_is_stale(promoted: Path) -> None:
    edit(Path(CONTRACT), "two names give two stages", "two names give three")
    assert found() == {"evidence-stale": "warning"}
    assert "the claim has changed since it was measured: prediction" in message("evidence-stale")


def spoil(root: Path) -> None:
    path = root / EVIDENCE / ONE / "junit.xml"
    path.write_bytes(path.read_bytes().replace(b"test_two", b"test_ten"))


def pin_nothing(root: Path) -> None:
    digest = read_bundle(root / EVIDENCE / ONE).statement_sha256
    edit(root / CONTRACT, f", statement_sha256: {digest}", "")


def claim_functional(root: Path) -> None:
    text = (root / CONTRACT).read_text(encoding="utf-8")
    (root / CONTRACT).write_text(text.replace(f"status: {PARTIAL}\n    ev", "status: FUNCTIONAL\n    ev", 1))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (spoil, "junit.xml was changed"),
    "a bundle that is gone": (lambda root: shutil.rmtree(root / EVIDENCE / ONE), "No such file"),
    "another statement": (
        lambda root: rewritten(root / EVIDENCE / ONE, environment={"python": "3"}),
        "expected was",
    ),
    "no digest": (pin_nothing, "gives no statement_sha256"),
    "a rung it does not carry": (claim_functional, "embedded-runtime"),
    "a way out of the project": (
        lambda root: edit(root / CONTRACT, f"bundle: evidence/{ONE}", f"bundle: ../{ONE}"),
        "outside the project",
    ),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_bundle_that_does_not_carry_its_status_is_an_error(promoted: Path, why: str) -> None:
    spoiling, said = BROKEN[why]
    spoiling(promoted)
    assert found()["evidence-does-not-verify"] == "error"
    assert said in message("evidence-does-not-verify")
    assert RENEWS.split(" && ")[1].split(" --evidence ")[0] in message("evidence-does-not-verify")


def test_a_bundle_that_no_contract_names_is_noticed(toy: Path) -> None:
    promote(ONE, "--evidence", EVIDENCE / ONE)
    assert found() == {"bundle-not-named": "notice"}
    assert f"evidence/{TWO}" in message("bundle-not-named")


def test_of_some_contracts_alone_no_bundle_is_called_nobodys(promoted: Path) -> None:
    text = Path(CONTRACT).read_text(encoding="utf-8")
    other = text.replace("C-TOY", "C-OTHER").replace("FALSIFY-TOY", "FALSIFY-OTHER")
    lines = [line for line in other.splitlines(keepends=True) if "evidence: {" not in line]
    Path("contracts/other-v1.yaml").write_text("".join(lines), encoding="utf-8")
    codes = {one.problem.code for one in validate((Path("contracts/other-v1.yaml"),), cached=False).shown}
    assert "bundle-not-named" not in codes


def test_functional_without_a_bundle_is_an_error_here_and_a_warning_where_no_evidence_is_kept(
    toy: Path,
) -> None:
    text = Path(CONTRACT).read_text(encoding="utf-8").replace(BLOCKER, "FUNCTIONAL")
    Path(CONTRACT).write_text(text, encoding="utf-8")
    assert found()["functional-without-bundle"] == "error"
    edit(Path("pyproject.toml"), 'evidence-dir = "evidence"\n', "")
    assert found()["functional-without-bundle"] == "warning"
    assert looked().counts.evidence_unchecked == 2


def test_contracts_of_another_project_are_not_judged_by_this_ones_evidence(toy: Path, tmp_path: Path) -> None:
    away = tmp_path / "away" / "contracts"
    away.mkdir(parents=True)
    text = Path(CONTRACT).read_text(encoding="utf-8").replace(BLOCKER, "FUNCTIONAL")
    (away / "toy-v1.yaml").write_text(text, encoding="utf-8")
    outcome = validate((away,), cached=False)
    codes = {one.problem.code: one.severity for one in outcome.shown}
    assert codes["functional-without-bundle"] == "warning"  # an error of the project that keeps evidence
    assert not codes.keys() & {"falsifier-without-test", "evidence-does-not-verify"}
    assert outcome.counts.evidence_unchecked == 2


def test_a_kept_answer_changes_with_bundle_code_and_contract(promoted: Path) -> None:
    assert found(cached=True) == found(cached=True) == {}
    edit(Path("src/toy.py"), 'split(",")', 'split(",", -1)')
    assert found(cached=True) == {"evidence-stale": "warning"}
    edit(Path("src/toy.py"), 'split(",", -1)', 'split(",")')
    assert found(cached=True) == {}
    junit = EVIDENCE / ONE / "junit.xml"
    data = junit.read_bytes()
    spoil(promoted)
    assert "evidence-does-not-verify" in found(cached=True)
    junit.write_bytes(data)
    edit(Path(CONTRACT), "two names give two stages", "two names give three")
    assert found(cached=True) == {"evidence-stale": "warning"}


def test_a_bundle_behind_a_link_is_looked_at_anew(promoted: Path) -> None:
    (promoted / EVIDENCE / ONE).rename(promoted / ONE)
    (promoted / EVIDENCE / ONE).symlink_to(Path("..", ONE))
    assert found(cached=True) == found(cached=True) == {}
    (promoted / ONE / "junit.xml").write_text("")
    assert found(cached=True) == {"evidence-does-not-verify": "error"}


def test_a_kept_answer_changes_with_the_settings_of_pytest(promoted: Path) -> None:
    assert found(cached=True) == {}
    (promoted / "pytest.ini").write_text("[pytest]\ntestpaths = elsewhere\n")
    assert found(cached=True) == found()
    assert "evidence-stale" in found(cached=True)


def test_a_kept_answer_that_is_spoilt_is_none(promoted: Path, tmp_path: Path) -> None:
    found(cached=True)
    (kept,) = (tmp_path / "cache").rglob("standings/*.json")
    for text in ("", "[]", '{"standings": {"F": {"state": "golden", "why": [], "bundle": ""}}}', "{}"):
        kept.write_text(text, encoding="utf-8")
        spoilt = found(cached=True)
        assert spoilt == {}


def test_where_no_bundle_is_named_nothing_is_imported_to_look_at_it(toy: Path) -> None:
    shutil.rmtree(EVIDENCE)
    script = """
import sys
from apr_falsify.commands.validate_contracts import validate
validate((), cached=False)
print([one for one in ('numpy', 'torch', 'apr_falsify.evidence.verify') if one in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=toy)
    assert done.stdout == "[]\n"


def test_a_rise_with_its_bundle_is_accepted_and_one_without_is_not(promoted: Path) -> None:
    git(promoted, "tag", "before", "HEAD~1")
    assert validate((), against="before", cached=False).exit_code == 0
    text = Path(CONTRACT).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if "evidence: {" not in line]
    Path(CONTRACT).write_text("".join(lines), encoding="utf-8")
    outcome = validate((), against="before", cached=False)
    assert {one.problem.code for one in outcome.shown} == {"status-raised-without-bundle", "bundle-not-named"}


def test_status_says_how_much_of_each_rung_rests_on_evidence(promoted: Path) -> None:
    assert f"  {PARTIAL:24}    2   2 fresh\n" in run("status").out
    edit(Path("src/toy.py"), 'split(",")', 'split(",", -1)')
    assert f"  {PARTIAL:24}    2   1 fresh, 1 stale\n" in run("status").out
    spoil(promoted)
    assert "1 fresh, 1 not carried by their bundle" in run("status").out


def test_the_evidence_of_functional_is_renewed_on_its_lane(promoted: Path) -> None:
    claim_functional(promoted)
    said = message("evidence-does-not-verify")
    assert "pytest -m falsify_toy_001 --lane=bench --evidence-dir=evidence" in said
    assert said.endswith("--renew --expect SHA256")


# tests by marker


def unmark(marker: str) -> None:
    path = Path("tests/test_toy.py")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if marker not in line), encoding="utf-8")


def test_a_marker_that_no_test_carries_is_not_found_where_the_status_says_there_is_one(
    promoted: Path,
) -> None:
    unmark("falsify_toy_002")
    assert found()["test-not-found"] == "error"
    assert "no test carries the marker 'falsify_toy_002'" in message("test-not-found")
    assert "falsifier-without-test" not in found()  # that is the same thing, and said once


def test_a_falsifier_without_a_test_is_an_error_whatever_its_status(toy: Path) -> None:
    shutil.rmtree(EVIDENCE)
    unmark("falsify_toy_002")
    assert found() == {"absent-as-stated": "notice", "falsifier-without-test": "error"}
    edit(Path("pyproject.toml"), 'contracts = ["contracts"]\n', "")  # pytest then runs no falsifier
    assert validate((Path("contracts"),), cached=False).exit_code == 0


def test_a_marked_test_that_is_not_collected_or_always_skipped_is_none(promoted: Path) -> None:
    path = Path("tests/test_toy.py")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("def test_blanks_go", "def blanks_go"), encoding="utf-8")
    assert found()["test-not-collected"] == "error"
    path.write_text(
        text.replace("@pytest.mark.falsify_toy_002\n", "@pytest.mark.skip\n@pytest.mark.falsify_toy_002\n")
    )
    assert found()["test-ignored"] == "error"


@pytest.mark.parametrize(
    ("test", "conftest", "codes"),
    [
        ("pytest -m slow", "", {"test-not-found"}),
        ("python -m pytest -q -m 'slow'", "", {"test-not-found"}),
        ("pytest -m slow", "def pytest_collection_modifyitems(items):\n    ...  # adds slow\n", set()),
        ("pytest -m 'not slow'", "", set()),
        ("pytest -m falsify_toy_001", "", set()),
        ("pytest -m falsify_toy_001 tests/test_toy.py", "", set()),
    ],
)
def test_which_markers_are_names(toy: Path, test: str, conftest: str, codes: set[str]) -> None:
    shutil.rmtree(EVIDENCE)
    text = Path(CONTRACT).read_text(encoding="utf-8").replace(BLOCKER, PARTIAL)
    Path(CONTRACT).write_text(
        text.replace("test: pytest -m falsify_toy_001\n", f'test: "{test}"\n'), encoding="utf-8"
    )
    if conftest:
        (toy / "conftest.py").write_text(conftest, encoding="utf-8")
    assert set(found()) == codes


# our own contract


def pinned(claim: Claim, folder: Path, code: Project) -> Pin:
    """Write a bundle of a claim of ours as it is now; only its tests are told and not run."""
    facts = facts_of(
        claim=claim.fields,
        contract=claim.contract,
        contract_version=claim.version,
        contract_path=f"contracts/{claim.path.name}",
        bound=binding_of(claim, REPOSITORY, code),
        lane=LaneFacts(name="embedded"),
    )
    bundle = folder / claim.falsifier
    return Pin(bundle=bundle.name, statement_sha256=write_bundle(Draft(facts=facts), bundle, report=False))


def test_promoting_one_falsifier_of_our_contract_leaves_the_evidence_of_the_others_fresh(
    tmp_path: Path,
) -> None:
    path, code = tmp_path / "trace-attn-sub-stages-v1.yaml", Project(REPOSITORY)
    shutil.copy(REPOSITORY / "contracts" / path.name, path)
    pins = {one.falsifier: pinned(one, tmp_path, code) for one in read_claims(path)}

    def states() -> dict[str, str]:
        checked = {one: verify(tmp_path / pin.bundle, pin=pin.statement_sha256) for one, pin in pins.items()}
        return {
            one.falsifier: state_of(
                checked[one.falsifier],
                replace(one, pin=pins[one.falsifier], rung=PARTIAL),
                bound_now=binding_of(one, REPOSITORY, code),
            ).state
            for one in read_claims(path)
        }

    everyone = {f"FALSIFY-ATTN-SUB-00{number}": "fresh" for number in range(1, 6)}
    assert states() == everyone
    first = "FALSIFY-ATTN-SUB-001"
    plan = PromotionPlan(
        falsifier=first, move=Move.PROMOTE, rung="FUNCTIONAL", pin=pins[first], date="2026-12-01", remark=""
    )
    path.write_bytes(plan_edit(path, path.read_bytes(), plan).after)
    assert states() == everyone
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("equal bit for bit", "equal, bit for bit", 1), encoding="utf-8")
    assert states() == everyone | {"FALSIFY-ATTN-SUB-005": "stale"}
