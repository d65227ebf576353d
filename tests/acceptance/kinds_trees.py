"""Trees for the kinds of drift: a Rust workspace and a Python project, in other habits than the vendored."""

from __future__ import annotations

from collections.abc import Mapping

ENGINE = """pub mod cache;
#[path = "odd/place.rs"]
pub mod ring;
#[cfg(feature = "gpu")]
pub mod gpu;
mod made;
/// The product.
/// ```
/// assert_eq!(kv_engine::mul(2, 3), 6);
/// ```
pub fn mul(a: i64, b: i64) -> i64 { a * b }
/// The half; says no more.
pub fn halve(a: i64) -> i64 { a / 2 }
#[cfg(all(test, feature = "simd"))]
mod lanes { #[test] fn sums_lanes() { assert_eq!(2, 1 + 1); } }
#[cfg(all(test, feature = "trace"))]
mod traced { #[test] fn traces_all() { assert_eq!(2, 1 + 1); } }
#[cfg(test)]
mod checks {
    use super::*;
    #[test]
    #[cfg_attr(not(miri), ignore)]
    fn under_miri() { assert_eq!(mul(1, 1), 1); }
    #[test]
    fn r#match() { assert_eq!(mul(1, 1), 1); }
    #[rstest]
    #[case(1, 2)]
    #[case::big(100, 200)]
    fn product_commutes(#[case] a: i64, #[case] b: i64) { assert_eq!(mul(a, b), mul(b, a)); }
    #[rstest]
    fn product_of_values(#[values(1, 2)] a: i64) { assert_eq!(mul(a, 1), a); }
    #[test_case(1, 1 ; "ones")]
    #[test_case(2, 3 ; "Two, and-three")]
    fn product_by_table(a: i64, b: i64) { assert_eq!(mul(a, b), a * b); }
    #[test_case(1, 1)]
    fn product_unnamed(a: i64, b: i64) { assert_eq!(mul(a, b), a * b); }
    proptest! {
        #[test]
        fn prop_zero(a in 0i64..100) { prop_assert_eq!(mul(a, 0), 0); }
    }
    #[tokio::test(flavor = "multi_thread")]
    async fn awaits_twice() { assert_eq!(mul(1, 1), 1); }
    #[test]
    #[cfg_attr(not(feature = "gpu"), ignore = "needs a GPU")]
    fn on_gpu_only() { assert_eq!(mul(1, 1), 1); }
    #[test] #[ignore] fn parked() { assert_eq!(mul(1, 1), 1); }
    #[test] fn says_nothing() { let x = 1; assert!(true, "fine"); }
    #[cfg(any())]
    #[test] fn any_of_none() { assert_eq!(mul(1, 1), 1); }
}
"""
WORKSPACE: Mapping[str, str] = {
    "Cargo.toml": '[workspace]\nmembers = ["engine", "tools/*"]\n',
    "engine/Cargo.toml": (
        '[package]\nname = "kv-engine"\nversion = "0.3.0"\n'
        '[features]\ndefault = []\nsimd = []\ngpu = ["simd"]\ntrace = []\n'
        '[dev-dependencies]\nproptest = "1"\nrstest = "0.18"\ntest-case = "3"\n'
    ),
    "engine/src/lib.rs": ENGINE,
    "engine/src/cache/mod.rs": "#[cfg(test)]\nmod tests;\n",
    "engine/src/cache/tests.rs": "#[test]\nfn evicts_oldest() { assert_eq!(2, 1 + 1); }\n",
    "engine/src/odd/place.rs": "#[test]\nfn turns_round() { assert_eq!(2, 1 + 1); }\n",
    "engine/src/gpu.rs": "#[test]\nfn launches() { assert_eq!(2, 1 + 1); }\n",
    "engine/src/stray.rs": "#[test]\nfn stray_test() { assert_eq!(2, 1 + 1); }\n",
    "engine/src/made.rs": (
        "macro_rules! law { ($($n:ident;)*) => { $( #[test] fn $n() { assert_eq!(2, 1 + 1); } )* } }\n"
        "law! { law_of_one; law_of_two; }\n"
        "macro_rules! held { ($m:ident, $e:expr) => { mod $m { #[test] fn holds() { assert!($e); } } } }\n"
        "held!(small, 1 < 2);\nheld!(large, 2 < 3);\n"
        "#[cfg(kani)]\n#[kani::proof]\nfn proves_mul() {}\n"
    ),
    "engine/tests/flow.rs": "mod helpers;\n#[test]\nfn flows_through() { assert_eq!(2, 1 + 1); }\n",
    "engine/tests/helpers/mod.rs": "#[test]\nfn helper_checked() { assert_eq!(2, 1 + 1); }\n",
    "tools/bench/Cargo.toml": (
        '[package]\nname = "bench-tool"\nversion = "0.1.0"\nautotests = false\n'
        '[[test]]\nname = "smoke"\npath = "checks/smoke.rs"\n'
        '[features]\nwide = ["kv-engine/simd"]\n'
        '[dependencies]\nkv-engine = {path = "../../engine", features = ["trace"]}\n'
    ),
    "tools/bench/src/main.rs": "fn main() {}\n#[test]\nfn parses_args() { assert_eq!(2, 1 + 1); }\n",
    "tools/bench/checks/smoke.rs": "#[test]\nfn smokes() { assert_eq!(2, 1 + 1); }\n",
    "solo/Cargo.toml": (
        '[package]\nname = "own-runner"\nversion = "0.1.0"\nautotests = false\n[workspace]\n'
        '[[test]]\nname = "own"\npath = "checks/own.rs"\nharness = false\n'
    ),
    "solo/src/lib.rs": "\n",
    "solo/checks/own.rs": "fn main() {}\n",
    "solo/tests/unlisted.rs": "#[test]\nfn unlisted_one() { assert_eq!(2, 1 + 1); }\n",
    "tools/bench/examples/shows.rs": "fn main() {}\n",
    "tools/bench/benches/speed.rs": "fn main() {}\n",
    "tools/bench/tests/forgotten.rs": "#[test]\nfn forgotten_one() { assert_eq!(2, 1 + 1); }\n",
}

FLOW = """import sys
import unittest
import pytest

@pytest.mark.parametrize("a, b", [(1, 2), (3, 4)], ids=["small", "big"])
def test_adds(a, b): assert a + b

@pytest.mark.parametrize("n", [1, -2, True, None, "x y", [3]])
def test_counts(n): assert n

@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("right", [pytest.param(3, id="three"), 4])
def test_pairs(left, right): assert left

@pytest.mark.parametrize("n", [1, 2])
def test_with_fixture(n, thing): assert n

class TestPipe:
    def test_opens(self): assert 1 + 1 == 2
    @pytest.mark.skip(reason="later")
    def test_closes(self): assert 1 + 1 == 2
    class TestInner:
        def test_deep(self): assert 1 + 1 == 2

@pytest.mark.skip
class TestParked:
    def test_one(self): assert 1 + 1 == 2

@unittest.skip("all")
class TestCaseOff(unittest.TestCase):
    def test_unit_parked(self): self.assertEqual(1 + 1, 2)

@pytest.mark.skipif(sys.platform == "win32", reason="posix")
def test_on_posix(): assert 1 + 1 == 2
"""
PROJECT: Mapping[str, str] = {
    "pyproject.toml": '[project]\nname = "pipe"\n[tool.pytest.ini_options]\ntestpaths = ["checks"]\n',
    "checks/test_flow.py": FLOW,
    "checks/test_marks.py": (
        "import pytest\npytestmark = [pytest.mark.gpu]\n\ndef test_on_card(): assert 1 + 1 == 2\n"
    ),
    "other/test_elsewhere.py": "def test_elsewhere(): assert 1 + 1 == 2\n",
    "Makefile": (
        "PY := python\n.PHONY: check\ncheck:\n\tpytest checks/test_flow.py -k test_opens\n\n"
        "check-gone: check\n\tpytest checks/test_flow.py::test_gone_for_good\n\ncheck-via: check-gone\n\n"
        "check-var:\n\t@$(PY) -m pytest checks/test_flow.py::TestPipe::test_vanished\n\n"
        "check-shell:\n\tfor one in a b; do pytest checks/$$one.py; done\n\n"
        "check-again:\n\t$(MAKE) check-var\n\n"
        "gone:\n\t@echo begins\n\t-pytest checks/test_flow.py::test_gone_too\n\n"
        "inner:\n\t$(MAKE) -C checks deep\n"
    ),
    "checks/Makefile": "deep:\n\tpytest test_flow.py::test_gone_inside\n",
    "justfile": (
        "verify-flow:\n    pytest checks/test_flow.py -k test_opens\n\n"
        'verify-gone arg="x": verify-flow\n    @pytest checks/test_flow.py -k test_gone_entirely\n\n'
        "[group('x')]\nplain:\n    pytest checks/test_flow.py::test_gone_plainly\n\nalias p := plain\n\n"
        "verify-arg name:\n    pytest checks/{{name}}.py\n\nverify-both: verify-flow verify-gone\n"
    ),
    "tox.ini": (
        "[tox]\nenvlist = py{311,312}-{unit,full}, lint\n[testenv]\ncommands =\n"
        "    pytest checks/test_flow.py {posargs}\n"
        "    full: pytest checks/test_missing.py\n"
        "[testenv:gone]\ncommands =\n    pytest {toxinidir}/checks/test_missing.py\n"
        "[testenv:lint]\ncommands = ruff check .\n"
    ),
    "noxfile.py": (
        "import nox\n@nox.session\n@nox.parametrize('n', [1])\ndef by_number(session, n): ...\n\n"
        "@nox.session\ndef flow_checks(session):\n"
        '    session.run("pytest", "checks/test_flow.py")\n\n'
        '@nox.session(name="gone-checks")\ndef gone(session):\n'
        '    session.run("pytest", "checks/test_gone_file.py", *session.posargs)\n'
    ),
    "scripts/verify.sh": "#!/bin/sh\nset -e\npytest checks/test_flow.py::TestPipe::test_opens\n",
    "scripts/verify_gone.sh": "#!/bin/sh\npytest checks/test_flow.py::TestPipe::test_gone_in_script\n",
    "scripts/verify_there.sh": '#!/bin/sh\ncd "$(dirname "$0")/../checks"\npytest test_flow.py::test_gone\n',
}
