"""docs/findings: what the page says of recorded runs is what the program says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.acceptance.programs import Outcome, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "findings" / "smollm2-apr-0.72.3.md").read_text(encoding="utf-8")
COMMANDS = [
    " ".join(match.split()) for match in re.findall(r"`(apr-falsify bisect --oracle tests/[^`]*)`", PAGE)
]
"""The commands of the page that need nothing but the repository."""


def said(command: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.chdir(ROOT)
    return run(*command.split()[1:], "--format", "json")


def test_the_recorded_llama_shows_the_wrong_pairs_and_the_empty_head(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [command for command in COMMANDS if "llama" in command]
    result = said(command, monkeypatch)
    assert result.code == 1
    told = {finding["stages"][0]: finding["explanation"] for finding in result.json["sources"]}
    assert set(told) == {"q_post_rope", "k_post_rope", "lm_head"}
    assert "rotary pairs (0, 1), (2, 3) ... fits" in told["q_post_rope"]
    assert "rotary pairs (0, 1), (2, 3) ... fits" in told["k_post_rope"]
    assert "all zeros fits" in told["lm_head"]


def test_the_recorded_4_bit_run_is_explained_to_1e_6(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [command for command in COMMANDS if "q4k" in command]
    result = said(command, monkeypatch)
    assert result.json["kind"] == "consistent"
    assert [finding["type"] for finding in result.json["findings"]] == ["tokenizer"]
    products = [row for row in result.json["stages"] if "q4_k" in (row["arithmetic"] or "")]
    assert {row["arithmetic"] for row in products} == {"q4_k x q8 blocks of 256"}
    assert len(products) == 15
    assert max(row["residual"] for row in products) < 1e-6


@pytest.mark.parametrize("name", ["weights", "from-gguf", "recorded", "from-checkpoint", "cases"])
def test_every_table_of_the_page_was_written(name: str) -> None:
    found = re.search(rf"<!-- begin {name} -->\n(.+?)\n<!-- end {name} -->", PAGE, flags=re.DOTALL)
    assert found is not None
    assert "nan" not in found[1]


def test_every_file_of_this_repository_that_the_page_names_exists() -> None:
    paths = re.findall(r"(?<![\w/.-])((?:src|tests|scripts)/[\w./-]+\w)", PAGE)
    assert len(paths) >= 8
    for path in paths:
        assert (ROOT / path).exists(), path
