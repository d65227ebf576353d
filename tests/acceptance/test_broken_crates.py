"""Crates that nobody can build, or read: each is told, with what is the matter, and nothing breaks down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome

MANIFEST = '[package]\nname = "demo"\nversion = "0.1.0"\nedition = "2021"\n'
ADDS = "#[test]\nfn adds() { assert_eq!(1 + 1, 2); }\n"
CONTRACT = (
    "metadata: {{id: C-D, version: 1.0.0, status: ACTIVE, description: d}}\n"
    "falsification_tests:\n- id: F-1\n  rule: r\n  prediction: p\n  if_fails: x\n  test: {}\n"
)


def check(root: Path, files: Mapping[str, str], test: str) -> ValidationOutcome:
    for name, text in {"Cargo.toml": MANIFEST, **files, "contracts/c-v1.yaml": CONTRACT.format(test)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return validate((root / "contracts",), cached=False)


def told(outcome: ValidationOutcome) -> list[tuple[str, str]]:
    return [(one.problem.code, one.problem.message) for one in outcome.shown]


def test_modules_that_hold_each_other(tmp_path: Path) -> None:
    files = {
        "src/lib.rs": f"mod a;\n{ADDS}",
        "src/a.rs": '#[path = "a/b.rs"] mod b;',
        "src/a/b.rs": '#[path = "../a.rs"] mod a;',
    }
    ((code, message),) = told(check(tmp_path, files, "cargo test -p demo adds"))
    assert code == "crate-not-readable"
    assert "src/a/b.rs:1" in message
    assert "circle" in message


def test_a_generated_file_of_20_mb(tmp_path: Path) -> None:
    generated = "pub const X: u8 = 1; // filler\n" * (20 * 2**20 // 31)
    files = {"src/lib.rs": f"mod generated;\n{ADDS}", "src/generated.rs": generated}
    assert told(check(tmp_path, files, "cargo test -p demo adds")) == []
    ((code, message),) = told(check(tmp_path, files, "cargo test -p demo made_by_it"))
    assert code == "test-not-checkable"
    assert "src/generated.rs" in message
    assert "too large" in message


def test_a_workspace_without_one_of_its_members(tmp_path: Path) -> None:
    files = {
        "Cargo.toml": '[workspace]\nmembers = ["a", "gone"]\n',
        "a/Cargo.toml": MANIFEST,
        "a/src/lib.rs": ADDS,
    }
    ((code, message),) = told(check(tmp_path, files, "cargo test -p demo adds"))
    assert code == "crate-not-readable"
    assert "'gone'" in message


@pytest.mark.parametrize("text", ["[package\nname = 1", "\x00", "package = 3\n[package]\n"])
def test_a_manifest_that_does_not_parse(tmp_path: Path, text: str) -> None:
    ((code, message),) = told(check(tmp_path, {"Cargo.toml": text, "src/lib.rs": ADDS}, "cargo test adds"))
    assert code == "test-not-checkable"
    assert "Cargo.toml" in message


@pytest.mark.parametrize(
    "text",
    [
        "[package]\nname = 3\n",
        "package = 3\n",
        "[workspace]\nmembers = 'a'\n",
        MANIFEST + "[features]\napi = 3\n[lib]\npath = 4\n",
        MANIFEST + "[[test]]\nname = 1\n[[bin]]\npath = 2\n",
        MANIFEST + "[dependencies]\nx = []\n[target]\ny = 1\n",
    ],
)
def test_a_manifest_with_values_of_other_types(tmp_path: Path, text: str) -> None:
    for code, message in told(check(tmp_path, {"Cargo.toml": text, "src/lib.rs": ADDS}, "cargo test adds")):
        assert code in ("test-not-checkable", "unresolved-name", "test-not-found"), message


def test_sources_behind_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "project", tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "lib.rs").write_text(ADDS, encoding="utf-8")
    (inside / "real").mkdir(parents=True)
    (inside / "real" / "lib.rs").write_text(ADDS, encoding="utf-8")
    (inside / "src").symlink_to("real")
    (inside / "loop").symlink_to("loop")
    (inside / "around").symlink_to(".")
    assert told(check(inside, {}, "cargo test -p demo adds")) == []
    (inside / "src").unlink()
    (inside / "src").symlink_to(outside)
    ((code, message),) = told(check(inside, {}, "cargo test -p demo adds"))
    assert (code, "no source of demo" in message) == ("test-not-checkable", True)


def test_a_test_named_like_a_keyword(tmp_path: Path) -> None:
    files = {
        "src/lib.rs": "mod r#async;\n",
        "src/async.rs": "#[test]\nfn r#match() { assert_eq!(1 + 1, 2); }\n",
    }
    assert told(check(tmp_path, files, "cargo test -p demo match")) == []
    assert [code for code, _ in told(check(tmp_path, files, "cargo test -p demo r#loop"))] == [
        "test-not-found"
    ]


def test_macros_within_macros_are_not_checkable_and_say_why(tmp_path: Path) -> None:
    source = (
        "macro_rules! inner { ($n:ident) => { paste::paste! { #[test] fn [<falsify_ $n>]() {} } } }\n"
        "macro_rules! outer { ($($n:ident)*) => { $( inner!($n); )* } }\n"
        "#[cfg(test)]\nmod tests {\n    outer! { one two }\n}\n"
    )
    ((code, message),) = told(check(tmp_path, {"src/lib.rs": source}, "cargo test -p demo falsify_one"))
    assert code == "test-not-checkable"
    assert "outer! at src/lib.rs:5" in message


@pytest.mark.parametrize(
    "source", ["{{{{", "}}}}", "mod a {", "#[", "fn", "mod", 'r#"', "/*", "macro_rules! x", "'", "x!("]
)
def test_text_that_breaks_off(tmp_path: Path, source: str) -> None:
    found = told(check(tmp_path, {"src/lib.rs": ADDS + source}, "cargo test -p demo adds"))
    assert found == []
