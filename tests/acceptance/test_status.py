"""``apr-falsify status``: computed from contracts and roadmap, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from apr_falsify.commands.status import read, render, status
from apr_falsify.contracts.statuses import LADDER
from apr_falsify.errors import UsageError
from tests.acceptance.test_validate_contracts import CONTRACT

REPOSITORY = Path(__file__).parents[2]
ROADMAP = """\
schema: apr-falsify/roadmap/v1
steps:
- {step: 1, title: first, level: algorithm, reach: PARTIAL_ALGORITHM_LEVEL, falsifiers: [FALSIFY-PARSER-001]}
- {step: 2, title: live, level: operator, reach: FUNCTIONAL, falsifiers: [FALSIFY-PARSER-001], waits_for: GPU}
- {step: 3, title: nothing, level: algorithm, reach: FUNCTIONAL, falsifiers: []}
models:
- model: M
  criteria:
  - {id: A, falsifiers: [FALSIFY-PARSER-001]}
  - {id: B, falsifiers: [FALSIFY-PARSER-002]}
  - {id: C, falsifiers: []}
- model: N
  criteria: []
"""
SECOND = (
    CONTRACT[CONTRACT.index("- id:") :]
    .replace("PARSER-001", "PARSER-002")
    .replace("PARTIAL_ALGORITHM_LEVEL", "FUNCTIONAL")
)


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    (tmp_path / "a-v1.yaml").write_text(CONTRACT + SECOND, encoding="utf-8")
    (tmp_path / "roadmap.yaml").write_text(ROADMAP, encoding="utf-8")
    return tmp_path


def test_the_tally_is_functional_plus_partial(contracts: Path) -> None:
    found = read(contracts)
    assert found.short == "1+1"
    assert found.contracts == 1


def test_a_step_is_done_when_all_its_falsifiers_reach_it_and_never_when_it_has_none(contracts: Path) -> None:
    assert [step.is_done for step in read(contracts).steps] == [True, False, False]


def test_ship_is_the_share_of_criteria_that_are_functional(contracts: Path) -> None:
    first, second = read(contracts).models
    assert first.ship_percent == 33
    assert second.ship_percent is None


def test_text_says_what_an_open_step_waits_for(contracts: Path) -> None:
    text = render(read(contracts), "text")
    assert "waits for GPU" in text
    assert "roadmap: 1 of 3 steps done" in text
    assert "N: no criteria" in text


def test_a_roadmap_that_names_an_unknown_falsifier_is_refused_with_its_line(contracts: Path) -> None:
    path = contracts / "roadmap.yaml"
    path.write_text(ROADMAP.replace("[FALSIFY-PARSER-002]", "[FALSIFY-PARSER-03]"), encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read(contracts)
    assert str(refused.value.where).endswith("roadmap.yaml:10")
    assert "FALSIFY-PARSER-00" in refused.value.remedy


@pytest.mark.parametrize("text", ["", "- a\n", "steps: []\n", "schema: other\n", "a: [\n"])
def test_what_is_no_roadmap_is_refused(contracts: Path, text: str) -> None:
    (contracts / "roadmap.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        read(contracts)


def test_our_own_roadmap_has_the_eight_steps_of_the_hunt() -> None:
    result = CliRunner().invoke(status, [str(REPOSITORY / "contracts"), "--format", "json"])
    data = json.loads(result.output)
    assert [row["step"] for row in data["roadmap"]] == [str(number) for number in range(1, 9)]
    assert [row["level"] for row in data["roadmap"]] == ["algorithm"] * 6 + ["operator"] * 2
    assert all(row["falsifiers"] for row in data["roadmap"])
    assert sum(data["tally"]["by_status"].values()) >= 20
    assert set(data["tally"]["by_status"]) == set(LADDER)
