"""What a Python or a Rust file defines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.symbols.match import is_inherited, is_reexported, lookup
from apr_falsify.symbols.python import index_python
from apr_falsify.symbols.rust import index_rust
from apr_falsify.symbols.tree import SourceTree
from apr_falsify.symbols.vocabulary import tokens

PYTHON = """
import os.path as osp
from a import b as c
LIMIT: int = 3
one, (two, three) = 1, (2, 3)
class Stage(Enum):
    SCORES = 1
    def value_of(self):
        self.kept = 1
        def inner(): pass
if True:
    async def later(): pass
try:
    pass
except ValueError:
    def on_error(): pass
with open("x") as f:
    in_with = 1
def outer():
    local = 1
    class Local: pass
"""

RUST = r"""
pub use deep::{self, Thing, other::Name as Alias, glob::*};
use private::Hidden;
pub enum Stage { Scores, Softmax { at: usize } }
pub struct Pair<T> { pub left: T, right: T }
impl<'a, T> Reads for Pair<T> { const N: usize = 1; type Out = T; fn read(&self) { fn inner() {} } }
pub trait Reads { type Out; fn read(&self); fn twice(&self) {} }
static COUNT: u8 = 1; const MAX: u8 = 2; type Short = u8;
macro_rules! make { () => {}; }
lazy_static! { static ref TABLE: u8 = 1; }
proptest! { #[test] fn holds(x in 0..1) { } }
make_tests!(generated_name);
include!("part.rs");
#[path = "elsewhere.rs"] mod child;
#[cfg(test)]
mod tests {
    #[test]
    fn plain() {}
    #[tokio::test(flavor = "x")]
    async fn with_runtime() {}
    #[test]
    #[ignore = "slow"]
    fn slow() {}
    #[cfg(feature = "cuda")]
    #[rstest]
    #[case(1)]
    fn cases() {}
    fn helper() {}
}
"""


def qualified(names: set[str]) -> set[str]:
    return names


def test_python_definitions_are_found_where_they_are() -> None:
    index = index_python(PYTHON.encode())
    found = {one.qualified: one.kind for one in index.definitions}
    assert found == {
        "LIMIT": "constant",
        "one": "constant",
        "two": "constant",
        "three": "constant",
        "Stage": "class",
        "Stage::SCORES": "attribute",
        "Stage::value_of": "method",
        "Stage::kept": "attribute",
        "Stage::value_of::inner": "function",
        "later": "function",
        "on_error": "function",
        "in_with": "constant",
        "outer": "function",
        "outer::Local": "class",
    }
    assert dict(index.reexports) == {"osp": "os.path", "c": "a.b"}
    assert next(index.named("later")).line == 12


def test_rust_definitions_are_found_where_they_are() -> None:
    index = index_rust(RUST.encode())
    assert index.error_line is None
    found = {one.qualified: one.kind for one in index.definitions}
    expected = {
        "Stage": "enum",
        "Stage::Scores": "variant",
        "Stage::Softmax": "variant",
        "Pair": "struct",
        "Pair::left": "field",
        "Pair::right": "field",
        "Pair::N": "constant",
        "Pair::Out": "type",
        "Pair::read": "function",
        "Pair::read::inner": "function",
        "Reads": "trait",
        "Reads::Out": "type",
        "Reads::read": "function",
        "Reads::twice": "function",
        "COUNT": "static",
        "MAX": "constant",
        "Short": "type",
        "make": "macro",
        "TABLE": "static",
        "holds": "function",
        "child": "module",
        "tests": "module",
        "tests::plain": "function",
        "tests::helper": "function",
    }
    assert expected.items() <= found.items()
    assert "generated_name" in index.possible
    assert index.includes == ("part.rs",)
    assert index.modules == (("child", "elsewhere.rs"),)
    assert set(index.reexports) == {
        ("deep", "deep"),
        ("Thing", "deep::Thing"),
        ("Alias", "deep::other::Name"),
        ("*", "deep::glob"),
    }
    assert index.traits_of == {"Pair": ("Reads",)}


@pytest.mark.parametrize(
    ("name", "test", "ignored"),
    [
        ("plain", True, False),
        ("with_runtime", True, False),
        ("slow", True, True),
        ("cases", True, False),
        ("holds", True, False),
        ("helper", False, False),
        ("read", False, False),
    ],
)
def test_rust_tests_are_told_from_helpers(name: str, test: bool, ignored: bool) -> None:
    one = next(index_rust(RUST.encode()).named(name))
    assert one.is_test is test
    assert ("ignored" in one.marks) is ignored


def test_a_feature_gate_is_kept_with_the_test() -> None:
    cases = next(index_rust(RUST.encode()).named("cases"))
    assert 'cfg(feature = "cuda")' in cases.marks
    assert "cfg(test)" in cases.marks


@pytest.mark.parametrize(
    ("source", "line"), [(b"def f(:\n    pass\n", 1), (b"x = 1\n  y = 2\n", 2), (b"a\x00b", 1), (b"\xff", 1)]
)
def test_python_that_does_not_parse_is_told_with_its_line(source: bytes, line: int) -> None:
    assert index_python(source).error_line == line


def test_rust_that_does_not_parse_is_told_with_its_line_and_the_rest_is_read() -> None:
    index = index_rust(b"fn good() {}\n\nfn bad( {\n")
    assert index.error_line == 3
    assert "good" in index.names


@given(source=st.binary(max_size=120))
def test_any_bytes_are_indexed(source: bytes) -> None:
    assert index_rust(source).language == "rust"
    assert index_python(source).language == "python"


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    files = {
        "src/lib.rs": 'pub mod attn;\npub use attn::scores;\ninclude!("part.rs");\nmake!(made);\n',
        "src/part.rs": "pub fn included() {}\n",
        "src/attn/mod.rs": "pub mod scores_file;\npub fn scores() {}\nstruct Attn;\nimpl Base for Attn {}\n",
        "src/attn/scores_file.rs": "pub fn deep() {}\n",
        "src/base.rs": "pub trait Base { fn provided(&self) {} }\n",
        "pkg/__init__.py": "from pkg.inner import helper\n",
        "pkg/inner.py": "class Base:\n    def shared(self): ...\n\ndef helper(): ...\n",
        "pkg/child.py": "from pkg.inner import Base\n\nclass Child(Base):\n    def own(self): ...\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return SourceTree(tmp_path)


@pytest.mark.parametrize(
    ("file", "name", "found"),
    [
        ("src/lib.rs", "included", True),
        ("src/lib.rs", "attn::scores", True),
        ("src/lib.rs", "deep", True),
        ("src/attn/mod.rs", "attn::Attn", True),
        ("src/attn/mod.rs", "Wrong::scores", False),
        ("src/part.rs", "scores", False),
        ("pkg/child.py", "Child::own", True),
        ("pkg/child.py", "Child::shared", False),
        ("src/lib.rs", "incl*", True),
    ],
)
def test_a_name_is_looked_up_in_a_file_and_what_it_pulls_in(
    tree: SourceTree, file: str, name: str, found: bool
) -> None:
    assert (lookup(tree, file, name) is not None) is found


def test_names_passed_on_and_inherited_are_known(tree: SourceTree) -> None:
    assert is_reexported(tree, "pkg/__init__.py", "helper")
    assert is_reexported(tree, "src/lib.rs", "made")
    assert not is_reexported(tree, "pkg/inner.py", "Child")
    assert is_inherited(tree, "pkg/child.py", "Child::shared")
    assert is_inherited(tree, "src/attn/mod.rs", "Attn::provided")
    assert not is_inherited(tree, "pkg/child.py", "Child::nothing")


def test_a_tree_never_reads_outside_its_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.py").write_text("def key(): ...\n", encoding="utf-8")
    (tmp_path / "root" / "link.py").symlink_to(tmp_path / "secret.py")
    tree = SourceTree(tmp_path / "root")
    assert tree.locate("../secret.py") is None
    assert tree.locate("link.py") is None
    assert tree.locate("a\x00b") is None
    assert tree.index("link.py") is None


def test_a_made_up_name_is_answered_with_those_that_share_its_rarest_word(tree: SourceTree) -> None:
    known = ["load_tensor_data", "is_aprt_stage_file", "run_diff"]
    assert tree.nearest("load_tensor_apr_aprt", known)[0] in ("is_aprt_stage_file", "load_tensor_data")
    assert tree.nearest("run_dif", known)[0] == "run_diff"
    assert tree.nearest("zzz", known) == []


def test_words_of_an_identifier() -> None:
    assert tokens("ParseStageList2") == {"parse", "stage", "list", "2"}
    assert tokens("parse_stage_list") == {"parse", "stage", "list"}
    assert tokens("HTTPServer") == {"http", "server"}
