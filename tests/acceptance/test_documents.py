"""What README.md and the other documents say is what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from apr_falsify.commands.lanes import KEYS
from apr_falsify.commands.main import VERBS
from apr_falsify.compare.bisection import Kind
from apr_falsify.contracts.statuses import LADDER
from apr_falsify.evidence.outcome import Level, Result, Role
from apr_falsify.model.families import FAMILIES
from apr_falsify.pytest_plugin import fixtures
from apr_falsify.pytest_plugin.project import OPTIONS
from tests.acceptance.programs import program
from tests.support import MACHINE_PATH

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"```\n\$ (apr-falsify .*?(?:\\\n.*?)*)\n(.*?)\n```", README, flags=re.DOTALL)
"""Command lines that README shows with a prompt, and what it shows below them."""

HELP = [command for command, _ in QUOTED if command.endswith("--help")]


def said(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    arguments = command.replace("\\\n", " ").split()[1:]
    return [line.rstrip() for line in program(*arguments).out.rstrip().splitlines()]


@pytest.mark.parametrize("command", HELP)
def test_the_help_that_readme_quotes_is_the_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(command, monkeypatch) == dict(QUOTED)[command].splitlines()


def test_the_output_that_readme_quotes_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    ((command, quoted),) = [(command, output) for command, output in QUOTED if command not in HELP]
    *shown, rest = quoted.splitlines()
    assert rest == "..."
    printed = said(command, monkeypatch)

    def stable(line: str) -> str:  # the last digits, and where the largest of tiny differences is, vary
        return " ".join(line.split()[:1]) if re.search(r"\de[-+]\d", line) else line

    assert [stable(line) for line in shown] == [stable(line) for line in printed[: len(shown)]]


def test_no_document_names_a_path_of_a_machine() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.*"), *(ROOT / "changelog.d").glob("*.md")]
    pages = [path for path in pages if "__pycache__" not in path.parts]  # left by who runs the examples
    named = [path for path in pages if MACHINE_PATH.search(path.read_text(encoding="latin-1"))]
    assert len(pages) > 40
    assert named == []


def test_readme_names_every_verb_and_kind() -> None:
    for verb in VERBS:
        assert f"apr-falsify {verb}" in README
    for kind in Kind:
        assert f"| `{kind.value}` |" in README


def test_readme_lists_the_families_of_the_table() -> None:
    quoter = runpy.run_path(str(ROOT / "scripts" / "quote_readme.py"))
    assert quoter["FAMILIES_TOLD"].findall(README) == [quoter["families_told"]()]
    for family in FAMILIES:
        assert re.split(r"\W", family.title)[0] in README


def test_the_page_of_families_is_that_of_the_table() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "families_page.py"))
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == script["page"]()
    assert len(FAMILIES) > 30


def fixtures_of_the_plugin() -> list[str]:
    """The fixtures that people's tests may name: what pytest lists, but for private ones."""
    names = [
        name for name, value in vars(fixtures).items() if type(value).__name__.startswith("FixtureFunction")
    ]
    return [name for name in names if not name.startswith("_")]


def test_the_page_on_falsifiers_names_every_option_key_fixture_argument_outcome_and_rung() -> None:
    page = (ROOT / "docs" / "falsifiers.md").read_text(encoding="utf-8")
    assert len(fixtures_of_the_plugin()) > 5
    for fixture in fixtures_of_the_plugin():
        assert f"`{fixture}`" in page
    for key in KEYS:
        assert f"| `{key}` |" in page
    for option in OPTIONS:
        assert option in page
    for argument in [*(f'role="{one}"' for one in Role), *(f'level="{one}"' for one in Level)]:
        assert f"| `{argument}` |" in page
    for word in [*Result, *LADDER]:
        assert f"| {word} |" in page


ROOMS = ("src/apr_falsify", "src/apr_falsify/subjects", "tests/acceptance")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:src|tests|changelog\.d|benchmarks|\.ci)/[\w./-]*)`", text)
    rooms = re.findall(
        r"`((?:numerics|model|formats|operators|traces|exam|oracle|subjects|compare|commands)/[\w./-]*|[a-z_]+\.py)`",
        text,
    )
    for path in [*links, *paths]:
        assert (ROOT / path).exists(), path
    for room in rooms:
        assert any((ROOT / place / room).exists() for place in ROOMS), room


def test_every_room_of_the_package_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "apr_falsify"
    rooms = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    rooms += [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    assert [room for room in rooms if f"`{room}`" not in text] == []
