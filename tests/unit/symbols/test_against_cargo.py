"""What reading finds of a workspace's tests, against what the real ``cargo test -- --list`` lists."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.contracts.names import parse_test
from apr_falsify.contracts.resolution import ResolutionState
from apr_falsify.contracts.resolve_cargo import resolve_cargo
from apr_falsify.contracts.roots import Roots, SearchScope
from tests.cargo_sample import write_sample

pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="no cargo on PATH")

NAMES = """
    in_plain in_below in_moved in_sibling in_async in_inner in_named in_api in_gated in_included in_orphan
    in_main in_tool in_whole in_common in_folder in_part in_example made_one made_two made_by_name passed_on
    simple ignored_too ignored_without_api ignored_with_api never quarantined on_a_machine conditional panics
    match uses_helper test_inner behind_inner behind_implied in_untested_library in_stated in_needs
    in_left_out in_tried in_old in_old_stated in_unfound commented nested not_a_module
    tests::simple moved::sibling::in_sibling plain::below outer::inner::in_inner from_include::in_included
    demo_a::tests::simple tests:: imple wrong::simple api::in_api common::in_common part::in_part
""".split()  # noqa: SIM905 - words read best as words
COMMANDS = (
    "cargo test --workspace",
    "cargo test -p demo-a",
    "cargo test -p demo-a --features api",
    "cargo test -p demo-a --lib",
    "cargo test -p demo-a --test whole",
    "cargo test -p demo-a --bins",
    "cargo test -p demo-a --all-targets",
    "cargo test -p demo-b",
    "cargo test -p demo-b --features needed",
    "cargo test -p demo-b --lib",
    "cd a && cargo test --tests",
    "cargo test -p old",
    "cargo test --all-features -p demo-a -p demo-b",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample"))


@cache
def listed(root: Path, command: str, *more: str) -> frozenset[str]:
    """Paths of the tests that real cargo lists; those of documentation left out."""
    words = command.partition("&& ")[2] or command
    folder = root / "a" if command.startswith("cd a") else root
    done = subprocess.run(
        [*words.split(), "--offline", "--quiet", "--", "--list", *more],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"^([\w:#]+): test$", done.stdout, re.MULTILINE))


def ours(root: Path, command: str, filters: tuple[str, ...]) -> Iterator[tuple[str, ResolutionState, str]]:
    scope = SearchScope(root / "contracts" / "x.yaml", Roots({}))
    (read,) = parse_test(command).cargo
    for one in filters:
        asked = CargoTest(**{name: getattr(read, name) for name in read.__slots__} | {"filters": (one,)})
        found = resolve_cargo(asked, scope)
        yield one, found.state, found.code


@pytest.mark.parametrize("command", COMMANDS)
def test_a_filter_is_judged_as_cargo_judges_it(sample: Path, command: str) -> None:
    """Each name is found exactly where cargo lists a test whose path holds it, and that is not ignored."""
    running = listed(sample, command) - listed(sample, command, "--ignored")
    for name, state, code in ours(sample, command, tuple(NAMES)):
        really = any(name in path.replace("r#", "") for path in running)
        assert (state is ResolutionState.RESOLVED) == really, (command, name, state, code)


@pytest.mark.parametrize("name", ["tests::ignored", "tests::ignored_too"])
def test_an_ignored_test_counts_where_it_is_asked_for(sample: Path, name: str) -> None:
    for flags, more in (("--include-ignored", ()), ("--ignored", ("--ignored",))):
        command = "cargo test -p demo-a --lib"
        assert any(name in path for path in listed(sample, command, *more))
        ((_, state, _),) = ours(sample, f"{command} -- {flags}", (name,))
        assert state is ResolutionState.RESOLVED


@pytest.mark.parametrize("name", ["tests::simple", "simple", "plain::in_plain", "in_plain", "tests::panics"])
def test_an_exact_filter_is_a_whole_path(sample: Path, name: str) -> None:
    ((_, state, _),) = ours(sample, "cargo test -p demo-a --lib -- --exact", (name,))
    assert (state is ResolutionState.RESOLVED) == (name in listed(sample, "cargo test -p demo-a --lib"))
