"""Names as people write them: what is read as a name, and what is left alone because it is prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.contracts.names import PathName, parse_path, parse_symbols, parse_test


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SaveTensorStage (enum, gains 2 variants)", ("SaveTensorStage",)),
        ("SaveTensorStage::AttnScores", ("SaveTensorStage::AttnScores",)),
        ("Class.method", ("Class::method",)),
        ("`bar(x, y) -> Result<()>`", ("bar",)),
        ("pub fn forward_traced", ("forward_traced",)),
        ("async def load", ("load",)),
        ("Vec<T>::push", ("Vec::push",)),
        ("crate::a::b", ("a::b",)),
        ("Foo::{A, B}", ("Foo::A", "Foo::B")),
        ("a_b, c_d and e_f", ("a_b", "c_d", "e_f")),
        ("compute_stats — sums in f64", ("compute_stats",)),
        ("compute_stats: sums in f64", ("compute_stats",)),
        ("is_aprt detects b'APRT' magic", ("is_aprt",)),
        ("my_macro!", ("my_macro",)),
        ("test_*", ("test_*",)),
        ("forward", ("forward",)),
    ],
)
def test_a_name_is_read_without_its_remark(text: str, names: tuple[str, ...]) -> None:
    assert parse_symbols(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "Null cells filtered via Array::is_null",
        "the function that reads stages",
        "verdict fn + 5-section mutation survey",
        "Unit tests: a_b, c_d",
        "",
        "42",
        "≥ 0.999",
    ],
)
def test_prose_is_no_name(text: str) -> None:
    assert parse_symbols(text) == ()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("scripts/x/  (PR #1423)", PathName(path="scripts/x")),
        ("crates/a/b.rs::Foo::bar()", PathName(path="crates/a/b.rs", symbol="Foo::bar")),
        ("aprender:crates/a.rs::Foo", PathName(path="crates/a.rs", source="aprender", symbol="Foo")),
        ("src/x.py:12-20", PathName(path="src/x.py")),
        ("src/x.py:1411", PathName(path="src/x.py")),
        ("src/x.py#L10-L20", PathName(path="src/x.py")),
        ("./src/x.py, line 3", PathName(path="src/x.py")),
        ("docs/ship.md §40", PathName(path="docs/ship.md")),
        ("`src/x.py`", PathName(path="src/x.py")),
        (
            "tests/test_x.py::TestA::test_b[1-2]",
            PathName(path="tests/test_x.py", symbol="TestA::test_b[1-2]"),
        ),
        ("contracts/a-v1.yaml v1.4.0 FUNCTIONAL (parent)", PathName(path="contracts/a-v1.yaml")),
    ],
)
def test_a_path_is_read_without_its_remark(text: str, path: PathName) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text",
    ["PR #1423 (HF)", "a and b", "https://example.org/a.py", "hidden_dim % heads", "all", "memory: 2026"],
)
def test_what_is_no_path_is_none(text: str) -> None:
    assert parse_path(text) is None


def test_a_bare_file_name_is_a_path_where_only_paths_stand() -> None:
    assert parse_path("Makefile") is None
    assert parse_path("Makefile", surely=True) == PathName(path="Makefile")
    assert parse_path("PR #1423", surely=True) is None


@pytest.mark.parametrize(
    ("text", "escapes"), [("/etc/passwd", True), ("../x.py", True), ("a/../b.py", True), ("a..b/c.py", False)]
)
def test_a_path_that_leaves_the_tree_is_known(text: str, escapes: bool) -> None:
    path = parse_path(text)
    assert path is not None
    assert path.escapes is escapes


def test_braces_are_several_paths_and_other_marks_are_placeholders() -> None:
    path = parse_path("crates/{a,b}/c.rs")
    assert path is not None
    assert path.alternatives() == ["crates/a/c.rs", "crates/b/c.rs"]
    assert not path.is_placeholder
    placeholder = parse_path("<model>.apr")
    assert placeholder is not None
    assert placeholder.is_placeholder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cargo test -p apr-cli --lib commands::diff::tests (11/11 PASS)",
            CargoTest(packages=("apr-cli",), targets=(("lib", ""),), filters=("commands::diff::tests",)),
        ),
        (
            "cargo test -p x --test ghost -- --exact foo::bar --nocapture",
            CargoTest(packages=("x",), targets=(("test", "ghost"),), filters=("foo::bar",), is_exact=True),
        ),
        (
            "cargo test --features a,b slow -- --ignored",
            CargoTest(filters=("slow",), features=("a", "b"), ignored="only"),
        ),
        (
            "$ RUST_LOG=debug cargo nextest run -p x name 2>&1 | tail",
            CargoTest(packages=("x",), filters=("name",), is_nextest=True),
        ),
        (
            "cargo nextest run -E 'test(a) & !test(b)'",
            CargoTest(filtersets=("test(a) & !test(b)",), is_nextest=True),
        ),
        ("`cargo test -p demo name` exits 0", CargoTest(packages=("demo",), filters=("name",))),
        (
            "cargo test -pdemo -Fa,b name -- --skip c",
            CargoTest(packages=("demo",), features=("a", "b"), filters=("name",), skips=("c",)),
        ),
        ("cargo test name passes on main", CargoTest(filters=("name",))),
        ("cd crates/x && cargo test --manifest-path y/Cargo.toml", CargoTest(folder="crates/x/y")),
        ("RUSTFLAGS='--cfg loom' cargo test", CargoTest(flags=("loom",))),
        ("cargo test -- 'test(name)'", CargoTest(filters=("test(name)",))),
    ],
)
def test_a_cargo_command_is_read(text: str, expected: CargoTest) -> None:
    assert parse_test(text).cargo == (expected,)


@pytest.mark.parametrize("sign", ["&&", ";", "|", "||", "\n", "2>&1 | tee log;"])
def test_every_command_of_a_line_is_read(sign: str) -> None:
    found = parse_test(f"cargo +nightly test one {sign} cargo test two")
    assert [one.filters for one in found.cargo] == [("one",), ("two",)]


def test_the_commands_of_a_shell_within_a_command_are_read() -> None:
    found = parse_test("bash -c 'cd crates/a && cargo test one; pytest tests -k two'")
    assert [(one.filters, one.folder) for one in found.cargo] == [(("one",), "crates/a")]
    assert [(one.keyword, one.arguments, one.folder) for one in found.runs] == [
        ("two", ("tests",), "crates/a")
    ]


@pytest.mark.parametrize(
    ("text", "files", "targets"),
    [
        ("tox -e py311 -- tests/unit/test_a.py", ["tests/unit/test_a.py"], [("tox", "py311")]),
        ("make falsify-attn FILE=tests/test_b.py", ["tests/test_b.py"], [("make", "falsify-attn")]),
        ("nox -s tests -- tests/test_c.py", ["tests/test_c.py"], [("nox", "tests")]),
        ("just check-all tests/test_d.py", ["tests/test_d.py"], [("just", "check-all")]),
        ("make sure that it holds", [], []),
    ],
)
def test_files_and_targets_given_to_a_build_tool_are_read(
    text: str, files: list[str], targets: list[tuple[str, str]]
) -> None:
    found = parse_test(text)
    assert [one.path for one in found.files] == files
    assert [(one.tool, one.name) for one in found.targets if one.is_sure] == targets


@pytest.mark.parametrize("text", ["cargo build -p x", "cargo test --doc", "cargo bench", "apr trace --help"])
def test_another_command_is_no_cargo_test(text: str) -> None:
    assert parse_test(text).cargo == ()


def test_pytest_nodes_are_read_wherever_they_stand() -> None:
    found = parse_test("uv run pytest -q tests/test_x.py::TestA::test_b[1] and lib:tests/t.py::test_c")
    assert [(node.path.source, node.path.path, node.parts) for node in found.nodes] == [
        ("", "tests/test_x.py", ("TestA", "test_b")),
        ("lib", "tests/t.py", ("test_c",)),
    ]


def test_the_file_a_script_runner_is_given_is_read_and_its_arguments_are_not() -> None:
    found = parse_test("bash scripts/check.sh out/result.json")
    assert [path.path for path in found.files] == ["scripts/check.sh"]
    assert parse_test("python -c 'import os/path.py'").files == ()


def test_a_test_named_alone_is_read_and_prose_is_not() -> None:
    assert parse_test("a::tests::name_one + name_two_three").bare == ("a::tests::name_one", "name_two_three")
    assert parse_test("proptest with random values").bare == ()
    assert parse_test("Live: build and run it").bare == ()


@given(text=st.text(max_size=80))
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse_symbols(text)
    parse_path(text)
    parse_test(text)


def test_a_long_word_without_braces_is_read_in_one_go() -> None:
    """From each letter anew it would take minutes."""
    word = "a" * 300_000
    assert parse_symbols(f"{word}::{{b, c}}") == (f"{word}::b", f"{word}::c")
    assert parse_symbols(f"{word}:{{") == ()
