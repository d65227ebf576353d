"""Tests named like keywords or by macros, and trees that are links: found where they are, else missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.names import parse_path, parse_symbols

CRATE = '[package]\nname = "demo"\nversion = "0.1.0"\nedition = "2021"\n'
CONTRACT = (
    "metadata: {id: C-D, version: 1.0.0, status: ACTIVE, description: d}\nfalsification_tests:\n"
    "- {id: F-1, rule: r, prediction: p, if_fails: x, test: '%s'}\n"
)


def codes(root: Path, test: str, files: dict[str, str]) -> list[str]:
    for name, text in {**files, "contracts/c-v1.yaml": CONTRACT % test}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    outcome = validate((root / "contracts",), cached=False)
    assert outcome.counts.names == 1
    return [one.problem.code for one in outcome.shown]


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("src/lib.rs::r#type", ""),
        ("src/lib.rs::type", ""),
        ("src/lib.rs::r#impl::r#loop", ""),
        ("src/lib.rs::Kind::r#move", ""),
        ("src/lib.rs::r#typo", "symbol-not-found"),
        ("src/lib.rs::loops", "symbol-not-found"),
        ("cargo test type", ""),
        ("cargo test r#impl::r#loop", ""),
        ("cargo test impl::loop", "test-not-found"),  # cargo lists it with its r#
        ("cargo test r#typo", "test-not-found"),
    ],
)
def test_a_keyword_as_a_name(tmp_path: Path, test: str, code: str) -> None:
    source = (
        "#[test]\nfn r#type() { assert_eq!(2, 1 + 1); }\n"
        "mod r#impl { #[test] fn r#loop() { assert_eq!(2, 1 + 1); } }\n"
        "pub struct Kind;\nimpl Kind { pub fn r#move(&self) {} }\n"
    )
    assert codes(tmp_path, test, {"Cargo.toml": CRATE, "src/lib.rs": source}) == ([code] if code else [])


@pytest.mark.parametrize("name", ["analysis/plot.r#fit", "analysis/plot-r#fit", "analysis/r#fit"])
def test_a_mark_in_a_file_is_no_keyword(name: str) -> None:
    assert (parse_path(name), parse_symbols(name)) == (None, ())


@pytest.mark.parametrize(
    ("macro", "code"),
    [
        ("paste::paste! { #[test] fn [<pasted_ one>]() { assert_eq!(2, 1 + 1); } }", "test-not-checkable"),
        ("paste! { #[tokio::test]\nasync fn [< a _one >]() {} }", "test-not-checkable"),
        ("seq!(N in 0..3 { #[test] fn numbered_~N() { assert_eq!(2, 1 + 1); } });", "test-not-checkable"),
        ("paste! { #[test] #[should_panic] fn [<a _one>]() { panic!() } }", "test-not-checkable"),
        ('paste! { #[test] #[should_panic(expected = "a]")] fn [<a _one>]() {} }', "test-not-checkable"),
        ("paste! { #[test]\n/// says why\n#[ignore]\nfn [<a _one>]() {} }", "test-not-checkable"),
        ("paste! { #[test] #[cfg_attr(a, b = [1])] fn [<a _one>]() {} }", "test-not-checkable"),
        ("paste! { #[test] pub fn [<a _one>]() {} }", "test-not-checkable"),
        ("paste! { #[test] pub(in crate::a) fn [<a _one>]() {} }", "test-not-checkable"),
        ("paste! { #[tokio::test] pub(crate) async unsafe fn [<a _one>]() {} }", "test-not-checkable"),
        ('paste! { #[test] extern "C" fn [<a _one>]() {} }', "test-not-checkable"),
        ("seq!(N in 0..3 { #[test] #[ignore] pub fn numbered_~N() {} });", "test-not-checkable"),
        ("paste! { fn [<helper_ one>]() -> i32 { 1 } }", "test-not-found"),
        ("paste! { #[cfg(test)] fn [<helper_ one>]() -> i32 { 1 } }", "test-not-found"),
        ("paste! { #[inline] pub fn [<helper_ one>]() -> i32 { 1 } }", "test-not-found"),
        ("paste! { #[test] fn one() {} #[inline] fn [<helper_ one>]() {} }", "test-not-found"),
        ("seq!(N in 0..3 { #[test] fn same() { assert_eq!(2, 1 + 1); } });", "test-not-found"),
    ],
)
def test_a_name_that_a_macro_of_another_crate_puts_together(tmp_path: Path, macro: str, code: str) -> None:
    assert codes(tmp_path, "cargo test numbered_1", {"Cargo.toml": CRATE, "src/lib.rs": macro}) == [code]


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("cd linked && cargo test adds_here", ""),
        ("cd linked && cargo test adds_nowhere", "test-not-found"),
        ("cargo test --manifest-path linked/Cargo.toml adds_here", ""),
        ("cargo test --manifest-path linked/Cargo.toml --workspace adds_here", ""),
        ("cd .hidden && cargo test adds_here", ""),
        ("cd absent && cargo test adds_here", "unresolved-name"),
    ],
)
def test_a_crate_that_a_link_leads_to(tmp_path: Path, test: str, code: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / ".hidden").symlink_to("real")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "real/up").symlink_to("..")
    source = "#[test]\nfn adds_here() { assert_eq!(2, 1 + 1); }\n"
    found = codes(tmp_path, test, {"real/Cargo.toml": CRATE, "real/src/lib.rs": source})
    assert found == ([code] if code else [])
