"""The 44 contracts written by others: what is reported for each is what the corpus table says, and why."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome
from tests.support import REAL_VARIABLE, real_folder

TABLE = tomllib.loads(
    (Path(__file__).parents[1] / "corpus" / "real-contracts.toml").read_text(encoding="utf-8")
)

pytestmark = pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")


@cache
def contracts() -> Path:
    """Return a copy of them alone: what else lies in that folder is no tree that they speak of."""
    folder = real_folder()
    assert folder is not None
    return Path(shutil.copytree(folder / "contracts", Path(tempfile.mkdtemp()) / "contracts"))


@cache
def alone() -> ValidationOutcome:
    return validate((contracts(),), cached=False)


@cache
def with_source(aprender: Path) -> ValidationOutcome:
    return validate((contracts(),), (f"aprender={aprender}",), cached=False)


def reported(outcome: ValidationOutcome, name: str) -> Counter[str]:
    return Counter(one.problem.code for one in outcome.shown if Path(one.problem.path).stem == name)


def test_the_table_has_every_file_with_a_reason() -> None:
    assert set(TABLE) == {path.stem for path in contracts().glob("*.yaml")}
    assert len(TABLE) == 44
    assert all(len(row["why"]) > 12 for row in TABLE.values())


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_reported_without_other_trees(name: str) -> None:
    assert reported(alone(), name) == Counter(TABLE[name]["alone"])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_reported_with_the_sources_of_aprender(name: str, aprender: Path) -> None:
    assert reported(with_source(aprender), name) == Counter(TABLE[name]["with_aprender"])


def test_the_function_that_existed_nowhere_is_found_with_the_wired_ones_as_nearest(aprender: Path) -> None:
    (found,) = [one.problem for one in with_source(aprender).shown if one.problem.code == "symbol-not-found"]
    assert found.subject == "load_tensor_apr_aprt"
    assert (found.line, found.column) == (221, 9)
    assert found.key == "falsification_tests[2].algorithm_evidence.function_names[0]"
    for wired in ("is_aprt_stage_file", "compute_aprt_stage_stats", "run_aprt_stage_diff"):
        assert wired in found.hint


def test_eight_capture_points_beside_nine_are_found() -> None:
    (found,) = [one.problem for one in alone().shown if one.problem.code == "count-disagrees"]
    assert (found.line, found.subject) == (115, "8 capture points")


def test_nothing_resolved_is_nothing_conclusive_where_nothing_else_is_wrong() -> None:
    outcome = validate((contracts() / "work__PMAT-4081.yaml",), cached=False)
    assert outcome.exit_code == 4
