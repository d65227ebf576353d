"""Editing a contract by character span: only the intended characters change, whatever the style."""

from __future__ import annotations

import difflib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from apr_falsify.contracts.claim import Pin, read_claim
from apr_falsify.contracts.promote import Edit, Move, PromotionPlan, plan_edit
from apr_falsify.contracts.replace import replace_bytes
from apr_falsify.errors import ContractError, OutputError
from tests.unit.contracts.promotion_styles import BLOCKER, DATE, PARTIAL, REFUSED, SHA, STYLES, USUAL, minimal

PIN = Pin(bundle="evidence/F-1", statement_sha256=SHA)
HERE = Path("contracts/x-v1.yaml")
OURS = sorted((Path(__file__).parents[3] / "contracts").glob("*-v1.yaml"))


def edited(data: bytes, **changes: Any) -> Edit:
    values = {"falsifier": "F-1", "move": Move.PROMOTE, "rung": PARTIAL, "pin": PIN, "date": DATE} | changes
    return plan_edit(HERE, data, PromotionPlan(**values))


@pytest.mark.falsify_bundle_002
@pytest.mark.parametrize("name", STYLES)
def test_only_the_intended_characters_change(name: str) -> None:
    style = STYLES[name]
    assert edited(style.data).after == style.expected


@pytest.mark.falsify_bundle_002
@pytest.mark.parametrize("name", STYLES)
def test_another_reader_finds_the_new_values_and_nothing_else_changed(name: str) -> None:
    """A loader that types every scalar is not the one that the edit was checked with."""
    style = STYLES[name]
    before, after = (yaml.load(one, yaml.CSafeLoader) for one in (style.data, edited(style.data).after))
    falsifiers = [next(iter(one[key] for key in one if key.startswith("falsif"))) for one in (before, after)]
    old, new = (one["F-1"] if isinstance(one, dict) else one[_at(one)] for one in falsifiers)
    assert new.pop("evidence").items() >= {"bundle": "evidence/F-1", "statement_sha256": SHA}.items()
    old.pop("evidence", None)
    for one in (old, new):
        for key in ("status", "discharge_status"):
            one.pop(key, None)
    for one in (before, after):
        one.pop("version", None)
        for key in ("version", "description", "status"):
            one["metadata"].pop(key, None)
    assert before == after


def _at(falsifiers: list[dict[str, Any]]) -> int:
    return next(at for at, one in enumerate(falsifiers) if one["id"] == "F-1")


@pytest.mark.parametrize("name", STYLES)
def test_a_second_promotion_finds_its_way_in_what_the_first_wrote(name: str) -> None:
    first = edited(STYLES[name].data)
    again = edited(first.after, rung="FUNCTIONAL", pin=Pin(bundle="evidence/F-1", statement_sha256="1a" * 32))
    major, minor, _ = first.version[1].removeprefix("v").split(".")
    assert again.version[1].removeprefix("v") == f"{major}.{int(minor) + 1}.0"
    assert b"1a" * 32 in again.after
    assert SHA.encode() not in again.after


@pytest.mark.parametrize("name", STYLES)
def test_a_renewal_and_a_demotion_find_their_way_too(name: str) -> None:
    first = edited(STYLES[name].data)
    pin = Pin(bundle="evidence/F-1", statement_sha256="1a" * 32)
    renewed = edited(first.after, move=Move.RENEW, pin=pin)
    assert renewed.status == (PARTIAL, PARTIAL)
    assert renewed.version[1].endswith(".1")
    demoted = edited(renewed.after, move=Move.DEMOTE, rung=BLOCKER, pin=None)
    assert b"1a" * 32 not in demoted.after
    text = demoted.after.decode("utf-8-sig")
    assert f"F-1 falls from {PARTIAL} to {BLOCKER}." in text
    assert edited(demoted.after).status == (BLOCKER, PARTIAL)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_all_of_a_contract_are_renewed_in_one_version_with_one_line_of_the_changelog(path: Path) -> None:
    data = path.read_bytes()
    tests = yaml.safe_load(data)["falsification_tests"]
    plans = [
        PromotionPlan(
            falsifier=one["id"],
            move=Move.RENEW,
            rung=one["status"],
            pin=Pin(bundle=f"evidence/{one['id']}", statement_sha256=f"{at:02x}" * 32),
            date=DATE,
        )
        for at, one in enumerate(tests)
    ]
    edit = plan_edit(path, data, *plans)
    old, new = data.decode().splitlines(), edit.after.decode().splitlines()
    removed = [line[2:] for line in difflib.ndiff(old, new) if line.startswith("- ")]
    added = [line[2:] for line in difflib.ndiff(old, new) if line.startswith("+ ")]
    assert (len(removed), len(added)) == (len(tests) + 1, len(tests) + 2)
    digests = [
        one["evidence"]["statement_sha256"] for one in yaml.safe_load(edit.after)["falsification_tests"]
    ]
    assert digests == [f"{at:02x}" * 32 for at in range(len(tests))]
    (said,) = (line for line in added if "renewed" in line)
    assert all(one["id"] in said for one in tests)
    major, minor, patch = edit.version[0].split(".")
    assert edit.version[1] == f"{major}.{minor}.{int(patch) + 1}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_place_that_is_not_certain_is_refused_with_what_to_write(name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(ContractError) as caught:
        edited(text.encode(errors="surrogateescape"))
    assert said in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(HERE))


@pytest.mark.falsify_bundle_002
@pytest.mark.parametrize(
    ("status", "move", "rung", "said"),
    [
        ("FUNCTIONAL", Move.PROMOTE, "FUNCTIONAL", "at the top"),
        (BLOCKER, Move.DEMOTE, BLOCKER, "at the bottom"),
        (BLOCKER, Move.PROMOTE, "FUNCTIONAL", "not one rung"),
        ("FUNCTIONAL", Move.DEMOTE, BLOCKER, "not one rung"),
        (PARTIAL, Move.RENEW, "FUNCTIONAL", "not one rung"),
    ],
)
def test_it_goes_one_rung_and_not_beyond_the_ladder(status: str, move: Move, rung: str, said: str) -> None:
    text = minimal("|\n    d").replace(BLOCKER, status)
    with pytest.raises(ContractError, match=said):
        edited(text.encode(), move=move, rung=rung)


def test_the_demotion_of_the_weakest_lowers_the_contract_too() -> None:
    first = edited(STYLES["comments"].data)
    demoted = edited(first.after, move=Move.DEMOTE, rung=BLOCKER, pin=None)
    data = yaml.safe_load(demoted.after)
    assert data["metadata"]["status"] == data["falsification_tests"][0]["status"] == BLOCKER
    assert data["falsification_tests"][0]["evidence"] is None
    assert data["metadata"]["version"] == "1.6.0"


@pytest.mark.parametrize(
    ("bundle", "written"),
    [
        ("evidence/F 1", "'evidence/F 1'"),
        ("evidence/it's: {x}", "'evidence/it''s: {x}'"),
        ("-x", "'-x'"),
        ("évidence", "'évidence'"),
    ],
)
def test_a_bundle_whose_name_means_something_in_yaml_is_quoted(bundle: str, written: str) -> None:
    edit = edited(STYLES["comments"].data, pin=Pin(bundle=bundle, statement_sha256=SHA))
    assert f"bundle: {written}," in edit.after.decode()
    assert yaml.safe_load(edit.after)["falsification_tests"][0]["evidence"]["bundle"] == bundle


def test_a_digest_that_reads_as_a_number_stays_a_text() -> None:
    digest = "1" * 63 + "2"
    edit = edited(STYLES["comments"].data, pin=Pin(bundle="b", statement_sha256=digest))
    assert yaml.safe_load(edit.after)["falsification_tests"][0]["evidence"]["statement_sha256"] == digest


def changed_lines(edit: Edit) -> tuple[list[str], list[str]]:
    lines = list(difflib.ndiff(edit.before.decode().splitlines(), edit.after.decode().splitlines()))
    return [one[2:] for one in lines if one[0] == "-"], [one[2:] for one in lines if one[0] == "+"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_falsifier_of_our_own_contracts_can_be_moved_and_its_claim_stays(
    path: Path, tmp_path: Path
) -> None:
    data = path.read_bytes()
    ladder = (BLOCKER, PARTIAL, "FUNCTIONAL")
    for one in yaml.safe_load(data)["falsification_tests"]:
        rung = ladder[ladder.index(one["status"]) + 1]
        edit = plan_edit(
            path, data, PromotionPlan(falsifier=one["id"], move=Move.PROMOTE, rung=rung, pin=PIN, date=DATE)
        )
        gone, new = changed_lines(edit)
        assert 2 <= len(gone) <= 4
        assert len(new) <= len(gone) + 2
        copy = tmp_path / path.name
        copy.write_bytes(edit.after)
        for other in yaml.safe_load(data)["falsification_tests"]:
            assert read_claim(copy, other["id"]).sha256 == read_claim(path, other["id"]).sha256
        assert read_claim(copy, one["id"]).pin == PIN
        assert read_claim(copy, one["id"]).rung == rung


@pytest.mark.parametrize("name", STYLES)
def test_the_claim_of_every_style_is_read_and_stays_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(STYLES[name].data)
    before = read_claim(path, "F-1")
    path.write_bytes(edited(STYLES[name].data).after)
    after = read_claim(path, "F-1")
    assert (after.sha256, after.pin, after.rung) == (before.sha256, PIN, PARTIAL)


# replacing the file


def test_a_contract_that_changed_since_it_was_read_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"theirs")
    with pytest.raises(ContractError, match="changed between"):
        replace_bytes(path, b"before", b"after")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["x.yaml"]


def test_mode_and_link_are_kept_and_a_stray_of_a_killed_run_is_written_over(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_bytes(b"before")
    real.chmod(0o640)
    link.symlink_to("real.yaml")
    (tmp_path / ".real.yaml.promoting").write_bytes(b"half")
    replace_bytes(link, b"before", b"after")
    assert link.is_symlink()
    assert real.read_bytes() == b"after"
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "real.yaml"]


def test_a_contract_that_is_gone_or_a_folder_is_a_typed_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            replace_bytes(path, b"before", b"after")


RACE = """
import sys, time
from pathlib import Path
from apr_falsify.contracts.claim import Pin
from apr_falsify.contracts.promote import Move, PromotionPlan, plan_edit
from apr_falsify.contracts.replace import replace_bytes
from apr_falsify.errors import ContractError
path, name = Path(sys.argv[1]), sys.argv[2]
data = path.read_bytes()
pin = Pin(bundle=name)
plan = PromotionPlan(falsifier=name, move=Move.PROMOTE, rung="PARTIAL_ALGORITHM_LEVEL", pin=pin, date="d")
edit = plan_edit(path, data, plan)
print("ready", flush=True)
sys.stdin.readline()
try:
    replace_bytes(path, edit.before, edit.after)
    print("won")
except ContractError as error:
    print(error.what)
"""


def test_of_two_processes_that_promote_one_contract_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(USUAL + f"  - id: F-2\n    status: {BLOCKER}\n", encoding="utf-8")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("F-1", "F-2")
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    said = sorted(one.communicate("go\n")[0].strip() for one in both)
    assert said[1] == "won"
    assert "changed between" in said[0]
    assert path.read_text(encoding="utf-8").count(PARTIAL) == 2  # the status, and its changelog line
    assert os.listdir(tmp_path) == ["x.yaml"]


def test_killed_at_any_moment_it_leaves_the_old_bytes_or_the_new_ones(tmp_path: Path) -> None:
    """Forked after the imports, so that every moment is one of the promotion itself."""
    path = tmp_path / "contracts" / "x.yaml"
    path.parent.mkdir()
    before = USUAL.encode()
    after = edited(before).after
    longest = _seconds(path, before)
    chance, seen = random.Random(7), set()
    for moment in range(200):
        if moment >= 100:  # as many again, ever later, where the machine has become slower
            if len(seen) == 2:
                break
            longest *= 1.05
        path.write_bytes(before)
        child = _child(path)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = path.read_bytes()
        assert left in (before, after)
        seen.add(left == after)
    path.write_bytes(before)
    replace_bytes(path, before, after)
    assert os.listdir(path.parent) == ["x.yaml"]
    assert seen == {False, True}  # else no moment of the writing was met


def _seconds(path: Path, before: bytes) -> float:
    """How long a child needs that nobody kills, at most of three."""
    return max(_lifetime(path, before) for _ in range(3))


def _lifetime(path: Path, before: bytes) -> float:
    path.write_bytes(before)
    start = time.perf_counter()
    os.waitpid(_child(path), 0)
    return time.perf_counter() - start


def _child(path: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            data = path.read_bytes()
            replace_bytes(path, data, edited(data).after)
        finally:
            os._exit(0)
    return child


def test_of_two_claims_of_one_id_none_is_taken(tmp_path: Path) -> None:
    contract = tmp_path / "x-v1.yaml"
    row = "  - {id: F-1, rule: r, test: pytest -m f_1}\n"
    contract.write_text("metadata: {id: C-X, version: 1.0.0}\nfalsification_tests:\n" + row * 2)
    with pytest.raises(ContractError, match="the id 'F-1' stands 2 times"):
        read_claim(contract, "F-1")
