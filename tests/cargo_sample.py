"""A workspace that holds every way in which a Rust test is there, is not, or does not run; it compiles."""

from __future__ import annotations

from pathlib import Path

LIBRARY = """
pub mod plain;
#[path = "odd/place.rs"]
mod moved;
mod r#async;
pub mod outer {
    pub mod inner;
    #[path = "named.rs"]
    mod other;
}
#[cfg(feature = "api")]
mod api;
mod gated;
include!("included.rs");
/// ```
/// assert_eq!(demo_a::documented(), 1);
/// ```
pub fn documented() -> u8 { let _text = "mod not_a_module { #[test] fn no() {} }"; 1 }
macro_rules! make { ($($name:ident),*) => { $( #[test] fn $name() { assert_eq!(1, 1); } )* } }
macro_rules! fixed { ($t:ty) => { #[test] fn made_by_name() { let _: $t = Default::default(); } } }
macro_rules! pass { ($($item:item)*) => { $($item)* } }
#[cfg(test)]
mod tests {
    make!(made_one, made_two);
    fixed!(u8);
    pass! { #[test] fn passed_on() {} }
    // mod commented { #[test] fn no() {} }
    /* #[test] fn nested() { /* fn } */ } */
    #[test] fn simple() {
        let (c, s, r) = ('{', "}\\"", r#"{"#);
        assert_eq!(s.len() + r.len() + c.len_utf8(), 4);
    }
    #[test] #[ignore] fn ignored() {}
    #[test] #[ignore = "slow"] fn ignored_too() {}
    #[cfg_attr(not(feature = "api"), ignore)] #[test] fn ignored_without_api() {}
    #[cfg_attr(feature = "api", ignore)] #[test] fn ignored_with_api() {}
    #[cfg(not(test))] #[test] fn never() {}
    #[cfg(broken)] #[test] fn quarantined() {}
    #[cfg(all(test, any(unix, windows)))] #[test] fn on_a_machine() {}
    #[cfg_attr(test, test)] fn conditional() {}
    #[test] #[should_panic] fn panics() { panic!() }
    #[test] fn r#match() {}
    fn helper<'a>(x: &'a [u8; 3]) -> &'a u8 { #[allow(unused)] fn test_inner() {} &x[0] }
    #[test] fn uses_helper() { assert_eq!(*helper(&[1, 2, 3]), 1); }
    mod deep { #![cfg(feature = "api")] #[test] fn behind_inner() {} }
    #[cfg(feature = "extra")] #[test] fn behind_implied() {}
}
"""
FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["a", "b", "c/*"]\nresolver = "2"\n',
    "a/Cargo.toml": (
        '[package]\nname = "demo-a"\nversion = "0.1.0"\nedition = "2021"\n'
        '[features]\ndefault = ["on"]\non = []\napi = ["extra"]\nextra = []\n'
        "[lints.rust]\nunexpected_cfgs = { level = \"allow\", check-cfg = ['cfg(broken)'] }\n"
    ),
    "a/src/lib.rs": LIBRARY,
    "a/src/plain.rs": "mod below;\n#[test] fn in_plain() {}\n",
    "a/src/plain/below.rs": "#[test] fn in_below() {}\n",
    "a/src/odd/place.rs": "mod sibling;\n#[test] fn in_moved() {}\n",
    "a/src/odd/sibling.rs": "#[test] fn in_sibling() {}\n",
    "a/src/async.rs": "#[test] fn in_async() {}\n",
    "a/src/outer/inner.rs": "#[test] fn in_inner() {}\n",
    "a/src/outer/named.rs": "#[test] fn in_named() {}\n",
    "a/src/api.rs": "#[test] fn in_api() {}\n",
    "a/src/gated.rs": '#![cfg(feature = "api")]\n#[test] fn in_gated() {}\n',
    "a/src/included.rs": "#[cfg(test)] mod from_include { #[test] fn in_included() {} }\n",
    "a/src/orphan.rs": "#[test] fn in_orphan() {}\n",
    "a/src/main.rs": "fn main() {}\n#[test] fn in_main() {}\n",
    "a/src/bin/tool.rs": "fn main() {}\n#[test] fn in_tool() {}\n",
    "a/tests/whole.rs": "mod common;\n#[test] fn in_whole() {}\n",
    "a/tests/common/mod.rs": "#[test] fn in_common() {}\n",
    "a/tests/folder/main.rs": "mod part;\n#[test] fn in_folder() {}\n",
    "a/tests/folder/part.rs": "#[test] fn in_part() {}\n",
    "a/examples/shown.rs": "fn main() {}\n#[test] fn in_example() {}\n",
    "b/Cargo.toml": (
        '[package]\nname = "demo-b"\nversion = "0.1.0"\nedition = "2021"\nautotests = false\n'
        "[features]\nneeded = []\n[lib]\ntest = false\n"
        '[[test]]\nname = "stated"\npath = "tests/other_name.rs"\n'
        '[[test]]\nname = "needs"\nrequired-features = ["needed"]\n[[example]]\nname = "tried"\ntest = true\n'
    ),
    "b/src/lib.rs": "#[test] fn in_untested_library() {}\n",
    "b/tests/other_name.rs": "#[test] fn in_stated() {}\n",
    "b/tests/needs.rs": "#[test] fn in_needs() {}\n",
    "b/tests/left_out.rs": "#[test] fn in_left_out() {}\n",
    "b/examples/tried.rs": "fn main() {}\n#[test] fn in_tried() {}\n",
    "c/old/Cargo.toml": '[package]\nname = "old"\nversion = "0.1.0"\n[[test]]\nname = "stated"\n',
    "c/old/src/lib.rs": "#[test] fn in_old() {}\n",
    "c/old/tests/stated.rs": "#[test] fn in_old_stated() {}\n",
    "c/old/tests/unfound.rs": "#[test] fn in_unfound() {}\n",
}


def write_sample(root: Path) -> Path:
    """Write the workspace, and return its folder."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
