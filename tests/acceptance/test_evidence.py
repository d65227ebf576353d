"""``apr-falsify evidence``: bundles re-checked on a machine that has neither torch, GPU nor network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.contracts.claim import read_claim
from apr_falsify.evidence.binding import binding_of
from apr_falsify.evidence.bundle import Draft, write_bundle
from tests.acceptance.programs import PROGRAM, TINY, Outcome, assert_refused, listing, program, run
from tests.unit.evidence.bundles import facts_of, measured_draft, scaled

CONTRACT = """
metadata:
  id: C-TOY
  version: 1.0.0
  status: PARTIAL_ALGORITHM_LEVEL
  description: A toy.
falsification_tests:
  - id: FALSIFY-TOY-001
    rule: the block computes what the reference computes
    prediction: no stage of it introduces an error
    test: pytest -m falsify_toy_001
    status: BLOCKER_FIXTURE_ABSENT
    algorithm_evidence:
      file_paths: [src/toy.py]
      function_names: [attend]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a contract, and a bundle of its falsifier."""
    root = tmp_path / "toy"
    for name, content in {
        "pyproject.toml": '[project]\nname = "toy"\n[tool.apr-falsify]\ncontracts = ["contracts"]\n',
        "contracts/toy-v1.yaml": CONTRACT,
        "src/toy.py": "def attend(x):\n    return scale(x)\ndef scale(x):\n    return x * 2\n",
        "tests/test_toy.py": "import pytest\n@pytest.mark.falsify_toy_001\ndef test_it(): pass\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    claim = read_claim(root / "contracts" / "toy-v1.yaml", "FALSIFY-TOY-001")
    draft, _ = measured_draft(
        scaled("attn_scores", 1.5), claim=dict(claim.fields), bound=binding_of(claim, root)
    )
    write_bundle(draft, root / "evidence" / "FALSIFY-TOY-001")
    return root


@pytest.fixture
def bundle(project: Path) -> Path:
    return project / "evidence" / "FALSIFY-TOY-001"


def digest(bundle: Path) -> str:
    done = subprocess.run(
        ["sha256sum", bundle / "statement.json"], check=True, capture_output=True, text=True
    )
    return done.stdout.split()[0]


def verified(*arguments: object) -> dict[str, Any]:
    outcome = run("evidence", "verify", *arguments, "--format", "json")
    assert outcome.err == ""
    found: dict[str, Any] = outcome.json
    assert found["schema"] == "apr-falsify/evidence-verification/v1"
    return found


def test_a_bundle_that_nothing_pins_says_so_loudly(bundle: Path) -> None:
    outcome = program("evidence", "verify", bundle)
    assert outcome.code == 0
    assert "UNPINNED" in outcome.out
    assert "No FUNCTIONAL rests on it" in " ".join(outcome.out.split())
    assert "VERIFIED" not in outcome.out
    assert max(map(len, outcome.out.splitlines()[1:])) <= 80


def test_the_digest_that_was_reviewed_verifies_and_counts_what_was_recomputed(bundle: Path) -> None:
    outcome = program("evidence", "verify", bundle, "--expect", digest(bundle))
    assert outcome.code == 0
    assert "VERIFIED, pinned by digest" in outcome.out
    for words in ("recomputed", "attested", "not checked", "SURVIVED"):
        assert words in outcome.out


def test_another_digest_does_not_verify(bundle: Path) -> None:
    outcome = run("evidence", "verify", bundle, "--expect", "0" * 64)
    assert outcome.code == 1
    assert "DOES NOT VERIFY" in outcome.out
    assert "pin-differs" in outcome.out


def test_one_bundle_that_does_not_verify_is_named_among_others(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "claim.json").write_text("{}")
    outcome = run("evidence", "verify", bundle, tmp_path / "copy", "--format", "json")
    assert outcome.code == 1
    assert (outcome.json["unpinned"], outcome.json["broken"]) == (1, 1)
    (problem,) = outcome.json["bundles"][1]["problems"]
    assert (problem["code"], problem["file"]) == ("changed-file", "claim.json")


def test_what_is_no_bundle_is_wrong_usage(tmp_path: Path, bundle: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, bundle / "claim.json"):
        assert_refused(run("evidence", "verify", path), path)
    assert_refused(run("evidence", "verify", bundle, "--expect", "abc"), "--expect")
    assert_refused(run("evidence", "verify", bundle, bundle, "--expect", "0" * 64), "--expect")
    assert_refused(run("evidence", "verify", bundle, "--key", "lane=abc"), "public key")
    assert_refused(run("evidence", "verify", bundle, "--key", "nowhere.pub"), "nowhere.pub")


NO_NETWORK = """
import socket, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "matplotlib", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
def refuse(*arguments, **options):
    raise AssertionError("the network was asked for")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["apr-falsify", *sys.argv[1:]]
from apr_falsify.commands.main import main
main()
"""


def isolated(*arguments: object) -> Outcome:
    """Run the program where torch and its kin cannot be imported, and no socket be opened."""
    command = [sys.executable, "-W", "error", "-c", NO_NETWORK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_torch_and_the_network_are_not_needed(bundle: Path, project: Path) -> None:
    contract = project / "contracts" / "toy-v1.yaml"
    outcome = isolated("evidence", "verify", bundle, "--expect", digest(bundle), "--contract", contract)
    assert outcome.code == 0, outcome
    assert "VERIFIED" in outcome.out
    assert "fresh" in outcome.out
    for verb in ("show", "verify"):
        assert isolated("evidence", verb, bundle).code == 0
    assert isolated("evidence", "diff", bundle, bundle).out == "the two bundles say the same\n"
    assert_refused(isolated("evidence", "report", bundle), "jinja2")


def test_weights_of_another_model_do_not_verify(bundle: Path) -> None:
    found = verified(bundle, "--weights", TINY)
    assert [one["code"] for one in found["bundles"][0]["problems"]] == ["other-weights"]


def test_a_contract_whose_claim_changed_makes_it_stale_and_not_broken(project: Path, bundle: Path) -> None:
    contract = project / "contracts" / "toy-v1.yaml"
    assert verified(bundle, "--contract", contract)["bundles"][0]["freshness"] == "fresh"
    contract.write_text(CONTRACT.replace("introduces an error", "introduces any error"))
    outcome = run("evidence", "verify", bundle, "--contract", contract)
    assert outcome.code == 0
    assert "STALE" in outcome.out
    assert "prediction" in outcome.out


def test_code_that_changed_makes_it_stale_and_a_comment_does_not(project: Path, bundle: Path) -> None:
    contract, source = project / "contracts" / "toy-v1.yaml", project / "src" / "toy.py"
    source.write_text("# a comment\n" + source.read_text())
    assert verified(bundle, "--contract", contract)["bundles"][0]["freshness"] == "fresh"
    source.write_text(source.read_text().replace("x * 2", "x * 3"))
    (entry,) = verified(bundle, "--contract", contract)["bundles"]
    assert entry["freshness"] == "stale"
    assert "src/toy.py::scale" in " ".join(entry["why"])
    assert entry["holds"]


def test_a_bundle_of_another_contract_or_project_does_not_verify(project: Path, bundle: Path) -> None:
    contract = project / "contracts" / "toy-v1.yaml"
    contract.write_text(CONTRACT.replace("C-TOY", "C-OTHER"))
    assert other(bundle, contract) == {"other-contract"}
    contract.write_text(CONTRACT)
    (project / "pyproject.toml").write_text('[project]\nname = "another"\n[tool.apr-falsify]\n')
    assert other(bundle, contract) == {"other-project"}
    contract.write_text(CONTRACT.replace("FALSIFY-TOY-001", "FALSIFY-TOY-002"))
    assert_refused(run("evidence", "verify", bundle, "--contract", contract), "FALSIFY-TOY-001")


def other(bundle: Path, contract: Path) -> set[str]:
    (entry,) = verified(bundle, "--contract", contract)["bundles"]
    assert entry["state"] == "broken"
    return {one["code"] for one in entry["problems"]}


def test_the_contracts_digest_and_keys_pin_it(project: Path, bundle: Path, tmp_path: Path) -> None:
    contract = project / "contracts" / "toy-v1.yaml"
    pinned = f"    evidence: {{bundle: evidence/FALSIFY-TOY-001, statement_sha256: {digest(bundle)}}}\n"
    contract.write_text(CONTRACT + pinned)
    assert verified(bundle, "--contract", contract)["bundles"][0]["pinned_by"] == ["digest"]
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "lane.pem"], check=True)
    signed = run("evidence", "sign", bundle, "--key", tmp_path / "lane.pem", "--key-id", "lane-cpu")
    assert signed.code == 0, signed
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    contract.write_text(CONTRACT + signed.out.splitlines()[-1] + "\n")
    (entry,) = verified(bundle, "--contract", contract)["bundles"]
    assert (entry["pinned_by"], entry["signed_by"]) == (["signature"], ["lane-cpu"])


def test_a_broken_bundle_and_a_zip_are_not_signed(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "lane.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    (bundle / "claim.json").write_text("{}")
    before = listing(bundle)
    assert_refused(run("evidence", "sign", bundle, "--key", key), "claim.json", "evidence verify")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(bundle / "statement.json", "statement.json")
    assert_refused(run("evidence", "sign", tmp_path / "x.zip", "--key", key), "zip")
    assert_refused(run("evidence", "sign", bundle, "--key", tmp_path / "no.pem"), "no.pem", "openssl genpkey")
    assert listing(bundle) == before


def test_without_cryptography_a_signed_bundle_says_what_to_install(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "lane.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    public = run("evidence", "sign", bundle, "--key", key).out.split()[-1].rstrip("}")
    script = "import sys\nsys.modules['cryptography'] = None\n" + NO_NETWORK
    command = [sys.executable, "-c", script, "evidence", "verify", str(bundle), "--key", f"lane={public}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), "apr-falsify[sign]")
    unlisted = subprocess.run(command[:-2], capture_output=True, text=True, check=False)
    assert unlisted.returncode == 0, unlisted
    assert "UNPINNED" in unlisted.stdout


def test_show_tells_what_a_bundle_says_of_itself(bundle: Path) -> None:
    outcome = run("evidence", "show", bundle)
    assert outcome.code == 0
    for words in ("FALSIFY-TOY-001", "SURVIVED", "C-TOY 1.0.0", "lane embedded", "2 tests", "several"):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines()[1:])) <= 80
    shown = run("evidence", "show", bundle, "--format", "json").json["bundles"][0]
    assert shown["falsifier"] == "FALSIFY-TOY-001"


def test_report_writes_the_same_page_again_outside_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = listing(bundle)
    outcome = run("evidence", "report", bundle, "--out", tmp_path / "page.html")
    assert outcome.code == 0, outcome
    assert (tmp_path / "page.html").read_bytes() == (bundle / "report.html").read_bytes()
    assert_refused(run("evidence", "report", bundle, "--out", bundle / "page.html"), "--out")
    assert listing(bundle) == before


def test_diff_says_in_what_two_bundles_differ(bundle: Path, tmp_path: Path) -> None:
    claim = json.loads((bundle / "claim.json").read_text())
    draft, _ = measured_draft(claim={**claim, "rule": "another rule"}, contract_version="2.0.0")
    write_bundle(draft, tmp_path / "other")
    outcome = run("evidence", "diff", bundle, tmp_path / "other", "--format", "json")
    assert outcome.code == 1
    found = {(one["about"], one["name"]): one for one in outcome.json["differences"]}
    assert found["claim", "rule"]["after"] == "another rule"
    assert found["outcome", "bisection"] == {
        "about": "outcome",
        "name": "bisection",
        "before": "several",
        "after": "consistent",
    }
    assert found["code", "src/toy.py::scale"]["after"] is None
    assert found["figures", "layer 0 attn_scores accumulated norm_ratio"]["before"] == pytest.approx(1.5)
    assert "another rule" in run("evidence", "diff", bundle, tmp_path / "other").out


def test_a_zip_is_read_like_its_directory(bundle: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", bundle.parent, bundle.name)
    path = tmp_path / "packed.zip"
    assert verified(path, "--expect", digest(bundle))["verified"] == 1
    assert run("evidence", "show", path).code == 0
    assert run("evidence", "diff", bundle, path).code == 0


def test_control_characters_of_a_bundle_never_reach_the_terminal(tmp_path: Path) -> None:
    write_bundle(Draft(facts=facts_of(tool="\x1b[2J evil \x07")), tmp_path / "bundle")
    for verb in ("verify", "show"):
        out = run("evidence", verb, tmp_path / "bundle").out
        assert "\\x1b" in out
        assert "\x1b" not in out


def test_help_names_the_verbs() -> None:
    out = subprocess.run([PROGRAM, "evidence", "--help"], capture_output=True, text=True, check=True).stdout
    for verb in ("verify", "show", "report", "diff", "sign"):
        assert f"\n  {verb} " in out
