"""Which items have documentation that ``cargo test`` runs: decided by hand from the rustdoc book."""

from __future__ import annotations

import pytest

from apr_falsify.symbols.rust_documented import ANY_NAME
from apr_falsify.symbols.rust_outline import outline_rust

KEYWORDS = {"pub", "fn", "struct"}  # the first word behind it is taken too: it may be a field


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("/// ```\n/// a();\n/// ```\nfn one() {}\n", {"one"}),
        ("/// ```text\n/// a\n/// ```\nfn one() {}\n", set()),
        ("///     indented();\npub struct Two;\n", {"Two"}),
        ("//! ```\n//! a();\n//! ```\nfn one() {}\n", {""}),
        ("// ```\n// a();\n// ```\nfn one() {}\n", set()),
        ("let a = 1; /// ```\nfn one() {}\n", set()),
        ("// plain // twice\n  /// ```\n  /// a();\n  /// ```\nfn three() {}\n", {"three"}),
        ("fn before() {}\n\n/// says\nfn none() {}\n/// ```\n/// a\n/// ```\nfn four() {}\n", {"four"}),
        ("/** ```\n a();\n ``` */\nfn one() {}\n", {ANY_NAME}),
        ("fn f() {} /** ```\n``` */\n", set()),
        ("fn f() {} /** a\n/** ```\n``` */\n", {ANY_NAME}),
        ("/* ``` */ fn one() {}\n", set()),
        ('#[doc = include_str!("readme.md")]\nfn one() {}\n', {ANY_NAME}),
        ('#[doc = "```\na();\n```"]\nfn one() {}\n', {ANY_NAME}),
        ('const mydoc: &str = "```";\n', set()),
        ("no end of a line //", set()),
    ],
)
def test_documentation_with_code(source: str, names: set[str]) -> None:
    found = outline_rust(source.encode()).documented
    assert found - KEYWORDS == names
